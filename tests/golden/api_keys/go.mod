module api_keys

go 1.26

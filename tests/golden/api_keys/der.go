package main

import (
	"encoding/asn1"
	"math/big"
)

// tlv joins its parts into one element with any tag.
func tlv(tag byte, parts ...[]byte) []byte {
	var content []byte
	for _, part := range parts {
		content = append(content, part...)
	}
	n := len(content)
	switch {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, content...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, content...)
	default:
		return append([]byte{tag, 0x82, byte(n >> 8), byte(n)}, content...)
	}
}

func sequence(parts ...[]byte) []byte    { return tlv(0x30, parts...) }
func octets(content []byte) []byte       { return tlv(0x04, content) }
func bits(content []byte) []byte         { return tlv(0x03, []byte{0}, content) }
func explicit(n byte, v []byte) []byte   { return tlv(0xa0|n, v) }
func number(n int64) []byte              { return must(asn1.Marshal(big.NewInt(n))) }
func oid(arcs ...int) []byte             { return must(asn1.Marshal(asn1.ObjectIdentifier(arcs))) }
func utcTime(text string) []byte         { return tlv(0x17, []byte(text)) }
func generalizedTime(text string) []byte { return tlv(0x18, []byte(text)) }

var (
	yes  = []byte{0x01, 0x01, 0xff}
	no   = []byte{0x01, 0x01, 0x00}
	null = []byte{0x05, 0x00}
)

// name is a distinguished name with one common name.
func name(text string) []byte { return nameOf(0x0c, []byte(text)) }

// nameOf is a distinguished name whose common name is a string of any type.
func nameOf(tag byte, text []byte) []byte {
	return sequence(tlv(0x31, sequence(oid(2, 5, 4, 3), tlv(tag, text))))
}

func extension(id []byte, critical bool, value []byte) []byte {
	if critical {
		return sequence(id, yes, octets(value))
	}
	return sequence(id, octets(value))
}

// ce is an extension 2.5.29.n.
func ce(n int, critical bool, value []byte) []byte {
	return extension(oid(2, 5, 29, n), critical, value)
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

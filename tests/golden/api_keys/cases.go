package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	_ "crypto/sha1"
	_ "crypto/sha512"
	"crypto/x509"
	"math/big"
	"slices"
)

var (
	serverAuth = oid(1, 3, 6, 1, 5, 5, 7, 3, 1)
	clientAuth = oid(1, 3, 6, 1, 5, 5, 7, 3, 2)
	anyUsage   = oid(2, 5, 29, 37, 0)
	ownUsage   = oid(1, 3, 6, 1, 4, 1, 99999, 1)
	basicCA    = ce(19, true, sequence(yes))
	certSign   = ce(15, true, tlv(0x03, []byte{2, 0x04}))
	strange    = oid(1, 3, 6, 1, 4, 1, 99999, 2)
)

// base is a good certificate for info, to be made odd by a case.
func base(s signer, info []byte) certificate {
	return certificate{
		version: explicit(0, number(2)), serial: number(4711), inner: s.algorithm, outer: s.algorithm,
		issuer: name("authority"), notBefore: utcTime("240101000000Z"), notAfter: utcTime("250101000000Z"),
		subject: name("key"), info: info,
	}
}

func root(s signer, extensions ...[]byte) certificate {
	c := base(s, s.info())
	c.subject, c.extensions = name("authority"), extensions
	return c
}

func with(c certificate, change func(*certificate)) certificate {
	change(&c)
	return c
}

func extended(c certificate, extensions ...[]byte) certificate {
	c.extensions = slices.Concat(c.extensions, extensions)
	return c
}

func (c *corpus) fill() {
	s := ed25519Signer()
	info := must(x509.MarshalPKIXPublicKey(ed25519.NewKeyFromSeed(make([]byte, 32)).Public()))
	leaf := base(s, info)
	leaf.noExtensions = true
	v3 := base(s, info)
	ca := c.authority("ed25519", s, root(s, basicCA, certSign).signed(s))

	c.structure(ca, leaf, v3)
	c.times(ca, leaf)
	c.names(ca, leaf)
	c.publicKeys(ca, leaf)
	c.extensionCases(ca, v3)
	c.chains(ca, leaf, v3)
	c.authorities(leaf, v3)
	c.algorithms(info)

	c.flip("plain", ca, leaf)
	c.flip("extended", ca, extended(v3,
		ce(14, false, octets([]byte{1, 2})),
		ce(35, false, sequence(tlv(0x80, []byte{3}))),
		ce(15, true, tlv(0x03, []byte{7, 0x80})),
		ce(19, true, sequence(no)),
		ce(37, false, sequence(serverAuth, clientAuth)),
		ce(17, false, sequence(tlv(0x82, []byte("a.b")), tlv(0x87, []byte{127, 0, 0, 1}), tlv(0x81, []byte("a@b")))),
		ce(31, false, sequence(sequence(tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("http://a"))))))),
		ce(32, false, sequence(sequence(oid(2, 5, 29, 32, 0)), sequence(oid(1, 2, 3)))),
		ce(36, false, sequence(tlv(0x80, []byte{1}), tlv(0x81, []byte{0}))),
		ce(54, false, number(1)),
		extension(oid(1, 3, 6, 1, 5, 5, 7, 1, 1), false, sequence(sequence(oid(1, 3, 6, 1, 5, 5, 7, 48, 1), tlv(0x86, []byte("u"))))),
		extension(strange, false, []byte{1}),
	))
	rsaInfo := must(x509.MarshalPKIXPublicKey(&rsa.PublicKey{N: big.NewInt(0x7fff_ffff_ffff_ffff), E: 65537}))
	c.flip("rsa", ca, with(leaf, func(l *certificate) {
		l.info, l.notAfter = rsaInfo, generalizedTime("20250101000000Z")
	}))
}

func (c *corpus) structure(ca *authority, leaf, v3 certificate) {
	add := func(name string, cert certificate) { c.key(name, ca, cert.signed(ca.signer)) }
	change := func(name string, f func(*certificate)) { add(name, with(leaf, f)) }

	add("version 3 without extensions", leaf)
	add("version 3 with an empty list of extensions", v3)
	change("version 1", func(l *certificate) { l.version = nil })
	change("version 1 spelt out", func(l *certificate) { l.version = explicit(0, number(0)) })
	change("version 2", func(l *certificate) { l.version = explicit(0, number(1)) })
	change("version 2 with unique ids", func(l *certificate) {
		l.version, l.between = explicit(0, number(1)), append(tlv(0x81, []byte{0, 1}), tlv(0x82, []byte{0, 2})...)
	})
	change("version 4", func(l *certificate) { l.version = explicit(0, number(3)) })
	change("version -1", func(l *certificate) { l.version = explicit(0, number(-1)) })
	add("version 1 with extensions", with(v3, func(l *certificate) { l.version = nil; l.extensions = [][]byte{ce(37, true, sequence(clientAuth))} }))
	change("serial zero", func(l *certificate) { l.serial = number(0) })
	change("serial negative", func(l *certificate) { l.serial = number(-7) })
	change("serial of 20 bytes", func(l *certificate) { l.serial = tlv(2, slices.Repeat([]byte{0x7a}, 20)) })
	change("serial of 21 bytes", func(l *certificate) { l.serial = tlv(2, []byte{0}, slices.Repeat([]byte{0xfa}, 20)) })
	change("serial of 60 bytes", func(l *certificate) { l.serial = tlv(2, slices.Repeat([]byte{0x11}, 60)) })
	change("serial with a needless zero", func(l *certificate) { l.serial = []byte{2, 2, 0, 1} })
	change("serial empty", func(l *certificate) { l.serial = []byte{2, 0} })
	change("inner and outer algorithm differ", func(l *certificate) { l.inner = sequence(oid(1, 3, 101, 112), null) })
	change("algorithm with parameters", func(l *certificate) {
		l.inner = sequence(oid(1, 3, 101, 112), null)
		l.outer = l.inner
	})
	change("bytes after the certificate", func(l *certificate) { l.after = []byte{0} })
	change("a certificate after the certificate", func(l *certificate) { l.after = ca.der })
	change("an element after the signature", func(l *certificate) { l.last = null })
	change("unknown algorithm", func(l *certificate) { l.inner = sequence(strange); l.outer = l.inner })

	good := leaf.signed(ca.signer)
	c.key("nothing", ca, []byte{})
	c.key("cut off", ca, good[:len(good)-1])
	c.key("wrong signature", ca, slices.Concat(good[:len(good)-1], []byte{good[len(good)-1] ^ 1}))
	long := slices.Concat([]byte{0x30, 0x83, 0x00, good[2], good[3]}, good[4:])
	if good[1] == 0x82 {
		c.key("length not in its shortest form", ca, long)
	} else {
		c.key("length not in its shortest form", ca, slices.Concat([]byte{0x30, 0x82, 0x00, good[2]}, good[3:]))
	}
	c.key("indefinite length", ca, slices.Concat([]byte{0x30, 0x80}, good[3:], []byte{0, 0}))
	c.key("not a sequence", ca, slices.Concat([]byte{0x31}, good[1:]))
}

func (c *corpus) times(ca *authority, leaf certificate) {
	add := func(name string, before, after []byte) {
		c.key(name, ca, with(leaf, func(l *certificate) { l.notBefore, l.notAfter = before, after }).signed(ca.signer))
	}
	from, to := leaf.notBefore, leaf.notAfter
	add("expired", from, utcTime("240630000000Z"))
	add("expired a second ago", from, utcTime("240630235959Z"))
	add("last second", from, utcTime("240701000000Z"))
	add("first second", utcTime("240701000000Z"), to)
	add("valid in a second", utcTime("240701000001Z"), to)
	add("not yet valid", utcTime("241201000000Z"), to)
	add("ends before it begins", to, from)
	add("without end", from, generalizedTime("99991231235959Z"))
	add("generalized time before 2050", generalizedTime("20240101000000Z"), generalizedTime("20250101000000Z"))
	add("since 1950", utcTime("500101000000Z"), to)
	add("until 1950", from, utcTime("500101000000Z"))
	add("until 2049", from, utcTime("491231235959Z"))
	add("since the year 0", generalizedTime("00000101000000Z"), to)
	add("without seconds", utcTime("2401010000Z"), to)
	add("generalized without seconds", generalizedTime("202401010000Z"), to)
	add("with a zone", utcTime("240101000000+0100"), to)
	add("with a zone of no offset", utcTime("240101000000+0000"), to)
	add("a zone decides", utcTime("240701010000+0100"), to)
	add("a zone decides otherwise", utcTime("240701005959-0100"), to)
	add("with a zone of 24 hours", utcTime("240101000000+2400"), to)
	add("with a zone of 25 hours", utcTime("240101000000+2500"), to)
	add("with half seconds", generalizedTime("20240101000000.5Z"), to)
	add("without a zone", utcTime("240101000000"), to)
	add("29 February of a leap year", utcTime("240229000000Z"), to)
	add("29 February of another year", utcTime("230229000000Z"), to)
	add("31 April", utcTime("230431000000Z"), to)
	add("month 13", utcTime("231301000000Z"), to)
	add("hour 24", utcTime("230101240000Z"), to)
	add("second 60", utcTime("230101000060Z"), to)
	add("time as text", tlv(0x13, []byte("240101000000Z")), to)
}

func (c *corpus) names(ca *authority, leaf certificate) {
	add := func(what string, subject []byte) {
		c.key(what, ca, with(leaf, func(l *certificate) { l.subject = subject }).signed(ca.signer))
	}
	add("subject empty", sequence())
	add("subject printable", nameOf(0x13, []byte("key*&")))
	add("subject printable with @", nameOf(0x13, []byte("a@b")))
	add("subject utf-8", nameOf(0x0c, []byte("ключ")))
	add("subject utf-8 broken", nameOf(0x0c, []byte{0xff}))
	add("subject teletex", nameOf(0x14, []byte{0xe9}))
	add("subject ia5", nameOf(0x16, []byte("a@b")))
	add("subject ia5 with high bit", nameOf(0x16, []byte{0xe9}))
	add("subject numeric", nameOf(0x12, []byte("12 3")))
	add("subject numeric with letter", nameOf(0x12, []byte("1a")))
	add("subject bmp", nameOf(0x1e, []byte{0, 'a', 4, 0x3a}))
	add("subject bmp terminated", nameOf(0x1e, []byte{0, 'a', 0, 0}))
	add("subject bmp odd", nameOf(0x1e, []byte{0, 'a', 0}))
	add("subject bmp surrogate", nameOf(0x1e, []byte{0xd8, 0}))
	add("subject bmp reserved", nameOf(0x1e, []byte{0xff, 0xfe}))
	add("subject universal string", nameOf(0x1c, []byte{0, 0, 0, 'a'}))
	add("subject visible string", nameOf(0x1a, []byte("a")))
	add("subject with an empty set", sequence(tlv(0x31)))
	add("subject with two values", sequence(tlv(0x31, sequence(oid(2, 5, 4, 3), tlv(0x0c, []byte("a"))), sequence(oid(2, 5, 4, 10), tlv(0x0c, []byte("b"))))))
	add("subject without set", sequence(sequence(oid(2, 5, 4, 3), tlv(0x0c, []byte("a")))))

	issuer := func(what string, issuer []byte) {
		c.key(what, ca, with(leaf, func(l *certificate) { l.issuer = issuer }).signed(ca.signer))
	}
	issuer("issuer spelt in another string type", nameOf(0x13, []byte("authority")))
	issuer("issuer in capitals", name("AUTHORITY"))
	issuer("issuer another", name("somebody"))
	issuer("issuer empty", sequence())
}

func (c *corpus) publicKeys(ca *authority, leaf certificate) {
	add := func(name string, info []byte) {
		c.key(name, ca, with(leaf, func(l *certificate) { l.info = info }).signed(ca.signer))
	}
	for _, curve := range []elliptic.Curve{elliptic.P224(), elliptic.P256(), elliptic.P384(), elliptic.P521()} {
		add("key "+curve.Params().Name, must(x509.MarshalPKIXPublicKey(must(ecdsa.GenerateKey(curve, rand.Reader)).Public())))
	}
	ec := oid(1, 2, 840, 10045, 2, 1)
	p256 := oid(1, 2, 840, 10045, 3, 1, 7)
	point := must(must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader)).PublicKey.Bytes())
	add("key P-256 compressed", sequence(sequence(ec, p256), bits(slices.Concat([]byte{2}, point[1:33]))))
	add("key P-256 cut off", sequence(sequence(ec, p256), bits(point[:64])))
	add("key P-256 off its curve", sequence(sequence(ec, p256), bits(slices.Concat(point[:64], []byte{point[64] ^ 1}))))
	add("key secp256k1", sequence(sequence(ec, oid(1, 3, 132, 0, 10)), bits(point)))
	add("key ec without curve", sequence(sequence(ec), bits(point)))
	add("key ed25519 with parameters", sequence(sequence(oid(1, 3, 101, 112), null), bits(make([]byte, 32))))
	add("key ed25519 short", sequence(sequence(oid(1, 3, 101, 112)), bits(make([]byte, 31))))
	add("key x25519", sequence(sequence(oid(1, 3, 101, 110)), bits(make([]byte, 32))))
	add("key ed448", sequence(sequence(oid(1, 3, 101, 113)), bits(make([]byte, 57))))
	add("key unknown", sequence(sequence(strange, null), bits([]byte{1, 2, 3})))
	add("key without bits", sequence(sequence(strange, null)))

	rsaID := oid(1, 2, 840, 113549, 1, 1, 1)
	add("key rsa 2048", must(x509.MarshalPKIXPublicKey(rsaKey(2048).Public())))
	modulus := number(0x7fff_ffff)
	add("key rsa tiny", sequence(sequence(rsaID, null), bits(sequence(modulus, number(3)))))
	add("key rsa without null", sequence(sequence(rsaID), bits(sequence(modulus, number(3)))))
	add("key rsa negative", sequence(sequence(rsaID, null), bits(sequence(number(-5), number(3)))))
	add("key rsa exponent zero", sequence(sequence(rsaID, null), bits(sequence(modulus, number(0)))))
	add("key rsa exponent huge", sequence(sequence(rsaID, null), bits(sequence(modulus, tlv(2, []byte{1, 0, 0, 0, 0, 0, 0, 0, 0})))))
	dsaID := oid(1, 2, 840, 10040, 4, 1)
	group := sequence(number(23), number(11), number(4))
	add("key dsa", sequence(sequence(dsaID, group), bits(number(8))))
	add("key dsa zero", sequence(sequence(dsaID, group), bits(number(0))))
	add("key dsa without group", sequence(sequence(dsaID), bits(number(8))))
	add("key dsa group negative", sequence(sequence(dsaID, sequence(number(23), number(-11), number(4))), bits(number(8))))
}

func (c *corpus) extensionCases(ca *authority, v3 certificate) {
	add := func(name string, extensions ...[]byte) {
		c.key(name, ca, extended(v3, extensions...).signed(ca.signer))
	}
	usage := func(name string, usages ...[]byte) { add(name, ce(37, false, sequence(usages...))) }
	usage("usage server", serverAuth)
	usage("usage client", clientAuth)
	usage("usage client and server", clientAuth, serverAuth)
	usage("usage any", anyUsage)
	usage("usage own", ownUsage)
	usage("usage own and any", ownUsage, anyUsage)
	usage("usage none")
	add("usage critical server", ce(37, true, sequence(serverAuth)))
	add("usage malformed", ce(37, false, sequence(null)))
	add("usage not a sequence", ce(37, false, serverAuth))
	add("usage netscape", ce(37, false, sequence(oid(2, 16, 840, 1, 113730, 4, 1))))

	add("unknown extension", extension(strange, false, []byte{1}))
	add("unknown critical extension", extension(strange, true, []byte{1}))
	add("unknown extension not critical, spelt out", sequence(strange, no, octets([]byte{1})))
	add("unknown extension with odd boolean", sequence(strange, []byte{1, 1, 1}, octets([]byte{1})))
	add("unknown 2.5.29 critical", ce(99, true, null))
	add("unknown 2.5.29.128 critical", ce(128, true, null))
	add("issuer alternative name critical", ce(18, true, sequence()))
	add("extension twice", extension(strange, false, []byte{1}), extension(strange, false, []byte{1}))
	add("extension without value", sequence(strange))
	add("extension with trailing element", sequence(strange, octets([]byte{1}), null))
	add("extension with a huge arc", extension(tlv(6, []byte{0x69, 0x90, 0x80, 0x80, 0x80, 0x00}), false, []byte{1}))

	add("leaf marked as authority", basicCA)
	add("leaf marked as authority with certSign", basicCA, certSign)
	add("leaf marked as authority, path length 0", ce(19, true, sequence(yes, number(0))))
	add("leaf marked as no authority", ce(19, true, sequence(no)))
	add("basic constraints empty", ce(19, true, sequence()))
	add("path length negative", ce(19, true, sequence(yes, number(-1))))
	add("path length huge", ce(19, true, sequence(yes, tlv(2, []byte{0, 0x80, 0, 0, 0, 0, 0, 0, 0}))))
	add("path length without authority", ce(19, true, sequence(number(3))))
	add("basic constraints malformed", ce(19, true, null))
	add("basic constraints with odd boolean", ce(19, true, sequence([]byte{1, 1, 1})))
	add("key usage signature", ce(15, true, tlv(3, []byte{7, 0x80})))
	add("key usage empty", ce(15, true, tlv(3, []byte{0})))
	add("key usage with used padding", ce(15, true, tlv(3, []byte{7, 0xff})))
	add("key usage malformed", ce(15, true, null))

	dns := func(text string) []byte { return tlv(0x82, []byte(text)) }
	add("names dns", ce(17, false, sequence(dns("example.org"))))
	add("names dns odd", ce(17, false, sequence(dns("*.-..b c"))))
	add("names dns with high bit", ce(17, false, sequence(dns("é"))))
	add("names ip", ce(17, false, sequence(tlv(0x87, []byte{127, 0, 0, 1}))))
	add("names ip of 5 bytes", ce(17, false, sequence(tlv(0x87, []byte{127, 0, 0, 1, 2}))))
	add("names uri", ce(17, false, sequence(tlv(0x86, []byte("https://example.org/key")))))
	add("names uri broken", ce(17, false, sequence(tlv(0x86, []byte("https://a..b/%zz")))))
	add("names uri relative", ce(17, false, sequence(tlv(0x86, []byte("key/1")))))
	add("names email", ce(17, false, sequence(tlv(0x81, []byte("a@example.org")))))
	add("names critical", ce(17, true, sequence(dns("example.org"))))
	add("names directory", ce(17, false, sequence(tlv(0xa4, name("x")))))
	add("names directory critical", ce(17, true, sequence(tlv(0xa4, name("x")))))
	add("names none", ce(17, false, sequence()))
	add("names none critical", ce(17, true, sequence()))
	add("names malformed", ce(17, false, null))

	add("subject key id", ce(14, false, octets([]byte{1})))
	add("subject key id critical", ce(14, true, octets([]byte{1})))
	add("subject key id malformed", ce(14, false, []byte{1}))
	add("authority key id other", ce(35, false, sequence(tlv(0x80, []byte{9, 9}))))
	add("authority key id without id", ce(35, false, sequence(tlv(0x82, []byte{1}))))
	add("authority key id critical", ce(35, true, sequence(tlv(0x80, []byte{9}))))
	add("authority key id malformed", ce(35, false, null))
	aia := oid(1, 3, 6, 1, 5, 5, 7, 1, 1)
	ocsp := sequence(oid(1, 3, 6, 1, 5, 5, 7, 48, 1), tlv(0x86, []byte("http://a")))
	add("authority information", extension(aia, false, sequence(ocsp)))
	add("authority information critical", extension(aia, true, sequence(ocsp)))
	add("authority information malformed", extension(aia, false, sequence(null)))
	add("authority information for a name", extension(aia, false, sequence(sequence(oid(1, 2, 3), tlv(0xa4, name("x"))))))
	add("distribution points", ce(31, true, sequence(sequence(tlv(0xa0, tlv(0xa0, tlv(0x86, []byte("u"))))), sequence())))
	add("distribution points malformed", ce(31, false, sequence(sequence(tlv(0xa0, null)))))
	policy := sequence(oid(1, 2, 3))
	add("policies", ce(32, true, sequence(policy, sequence(oid(2, 5, 29, 32, 0)))))
	add("policies twice the same", ce(32, false, sequence(policy, policy)))
	add("policies malformed", ce(32, false, sequence(oid(1, 2, 3))))
	add("policies with a huge arc", ce(32, false, sequence(sequence(tlv(6, []byte{0x69, 0x90, 0x80, 0x80, 0x80, 0x80, 0x00})))))
	add("policy mappings", ce(33, true, sequence(sequence(oid(1, 2, 3), oid(1, 2, 4)))))
	add("policy mappings malformed", ce(33, false, sequence(sequence(oid(1, 2, 3)))))
	required := ce(36, true, sequence(tlv(0x80, []byte{0})))
	add("policy required and absent", required)
	add("policy required and empty", required, ce(32, false, sequence()))
	add("policy required and there", required, ce(32, false, sequence(policy)))
	add("policy required and any there", required, ce(32, false, sequence(sequence(oid(2, 5, 29, 32, 0)))))
	add("policy required later", ce(36, true, sequence(tlv(0x80, []byte{1}))))
	add("policy required less than now", ce(36, true, sequence(tlv(0x80, []byte{0xff}))))
	add("policy constraints malformed", ce(36, true, sequence(tlv(0x80))))
	add("inhibit any-policy", ce(54, true, number(0)))
	add("inhibit any-policy malformed", ce(54, true, null))
	add("name constraints in a key", basicCA, ce(30, true, sequence(tlv(0xa0, sequence(dns("example.org"))))))
	add("name constraints in a key, empty", basicCA, ce(30, true, sequence()))
}

func (c *corpus) chains(ca *authority, leaf, v3 certificate) {
	s := ca.signer
	c.key("the authority itself", ca, ca.der)
	again := with(root(s, basicCA), func(l *certificate) { l.serial = number(5) })
	c.key("the authority under another serial", ca, again.signed(s))
	c.key("the authority with other names", ca, extended(again, ce(17, false, sequence(tlv(0x82, []byte("a"))))).signed(s))
	c.key("the authority's key for another subject", ca, with(again, func(l *certificate) { l.subject = name("key") }).signed(s))
	c.key("the authority's subject with another key", ca, with(leaf, func(l *certificate) { l.subject = name("authority") }).signed(s))

	other := ed25519Of(ed25519.NewKeyFromSeed(slices.Repeat([]byte{7}, 32)))
	c.key("another authority of the same name", ca, leaf.signed(other))
	c.key("self-signed", ca, with(base(other, other.info()), func(l *certificate) { l.issuer = name("key") }).signed(other))
	middle := extended(with(v3, func(l *certificate) { l.subject, l.info = name("middle"), other.info() }), basicCA, certSign)
	c.key("an intermediate itself", ca, middle.signed(s))
	c.key("below an intermediate", ca, with(leaf, func(l *certificate) { l.issuer = name("middle") }).signed(other))
	c.key("below an intermediate, sent along", ca, with(leaf, func(l *certificate) {
		l.issuer, l.after = name("middle"), middle.signed(s)
	}).signed(other))
}

func (c *corpus) authorities(leaf, v3 certificate) {
	s := ed25519Signer()
	dns := ce(17, false, sequence(tlv(0x82, []byte("a.example.org"))))
	add := func(name string, cert certificate) {
		a := c.authority(name, s, cert.signed(s))
		c.key("leaf of "+name, a, leaf.signed(s))
		c.key("server leaf of "+name, a, extended(v3, ce(37, false, sequence(serverAuth))).signed(s))
		c.key("named leaf of "+name, a, extended(v3, dns).signed(s))
		c.key("authority leaf of "+name, a, extended(v3, basicCA).signed(s))
	}
	add("version 1 authority", with(root(s), func(r *certificate) { r.version, r.noExtensions = nil, true }))
	add("version 3 authority without extensions", with(root(s), func(r *certificate) { r.noExtensions = true }))
	add("authority denied", root(s, ce(19, true, sequence(no))))
	add("authority without key usage", root(s, basicCA))
	add("authority with empty key usage", root(s, basicCA, ce(15, true, tlv(3, []byte{0}))))
	add("authority that may not sign", root(s, basicCA, ce(15, true, tlv(3, []byte{7, 0x80}))))
	add("authority with path length 0", root(s, ce(19, true, sequence(yes, number(0)))))
	add("authority for servers", root(s, basicCA, ce(37, false, sequence(serverAuth))))
	add("authority for clients", root(s, basicCA, ce(37, false, sequence(clientAuth))))
	add("authority for any usage", root(s, basicCA, ce(37, false, sequence(anyUsage))))
	add("authority with unknown critical extension", root(s, basicCA, extension(strange, true, null)))
	add("authority expired", with(root(s, basicCA), func(r *certificate) { r.notAfter = utcTime("240630235959Z") }))
	add("authority not yet valid", with(root(s, basicCA), func(r *certificate) { r.notBefore = utcTime("240701000001Z") }))
	add("authority issued by another", with(root(s, basicCA), func(r *certificate) { r.issuer = name("somebody") }))
	add("authority that requires a policy", root(s, basicCA, ce(36, true, sequence(tlv(0x80, []byte{0})))))
	add("authority permitting example.org", root(s, basicCA, ce(30, true, sequence(tlv(0xa0, sequence(tlv(0x82, []byte("example.org"))))))))
	add("authority excluding example.org", root(s, basicCA, ce(30, true, sequence(tlv(0xa1, sequence(tlv(0x82, []byte("example.org"))))))))
	named := c.authority("authority with a name", s, root(s, basicCA, dns).signed(s))
	c.key("the named authority under another serial", named, with(root(s, basicCA, dns), func(l *certificate) { l.serial = number(5) }).signed(s))
	c.key("the named authority without its name", named, with(root(s, basicCA), func(l *certificate) { l.serial = number(5) }).signed(s))
}

func (c *corpus) algorithms(info []byte) {
	add := func(name string, s signer) {
		a := c.authority(name, s, root(s, basicCA).signed(s))
		leaf := base(s, info)
		leaf.noExtensions = true
		good := leaf.signed(s)
		c.key("signed by "+name, a, good)
		c.key("badly signed by "+name, a, slices.Concat(good[:len(good)-1], []byte{good[len(good)-1] ^ 1}))
	}
	add("P-256 SHA-256", ecdsaSigner(elliptic.P256(), 2, crypto.SHA256))
	add("P-256 SHA-384", ecdsaSigner(elliptic.P256(), 3, crypto.SHA384))
	add("P-256 SHA-512", ecdsaSigner(elliptic.P256(), 4, crypto.SHA512))
	add("P-384 SHA-256", ecdsaSigner(elliptic.P384(), 2, crypto.SHA256))
	add("P-384 SHA-384", ecdsaSigner(elliptic.P384(), 3, crypto.SHA384))
	add("P-384 SHA-512", ecdsaSigner(elliptic.P384(), 4, crypto.SHA512))
	add("P-521 SHA-512", ecdsaSigner(elliptic.P521(), 4, crypto.SHA512))
	add("P-224 SHA-256", ecdsaSigner(elliptic.P224(), 2, crypto.SHA256))
	withParameters := ecdsaSigner(elliptic.P256(), 2, crypto.SHA256)
	withParameters.algorithm = sequence(oid(1, 2, 840, 10045, 4, 3, 2), null)
	add("P-256 SHA-256 with parameters", withParameters)
	sha1 := hashed(withParameters.key, sequence(oid(1, 2, 840, 10045, 4, 1)), crypto.SHA1)
	add("P-256 SHA-1", sha1)

	key := rsaKey(2048)
	pkcs1 := func(arc int) []byte { return sequence(oid(1, 2, 840, 113549, 1, 1, arc), null) }
	add("RSA SHA-256", hashed(key, pkcs1(11), crypto.SHA256))
	add("RSA SHA-384", hashed(key, pkcs1(12), crypto.SHA384))
	add("RSA SHA-512", hashed(key, pkcs1(13), crypto.SHA512))
	add("RSA SHA-1", hashed(key, pkcs1(5), crypto.SHA1))
	add("RSA SHA-256 without null", hashed(key, sequence(oid(1, 2, 840, 113549, 1, 1, 11)), crypto.SHA256))
	add("RSA 3072 SHA-256", hashed(rsaKey(3072), pkcs1(11), crypto.SHA256))
	add("RSA 1024 SHA-256", hashed(rsaKey(1024), pkcs1(11), crypto.SHA256))
	add("RSA 2047 SHA-256", hashed(rsaKey(2047), pkcs1(11), crypto.SHA256))

	pss := func(arc, mgfArc int, params []byte, salt int64, more ...[]byte) []byte {
		hash := func(arc int) []byte { return sequence(oid(2, 16, 840, 1, 101, 3, 4, 2, arc), params) }
		fields := [][]byte{explicit(0, hash(arc)), explicit(1, sequence(oid(1, 2, 840, 113549, 1, 1, 8), hash(mgfArc))), explicit(2, number(salt))}
		return sequence(oid(1, 2, 840, 113549, 1, 1, 10), sequence(append(fields, more...)...))
	}
	options := func(hash crypto.Hash, salt int) crypto.SignerOpts {
		return &rsa.PSSOptions{SaltLength: salt, Hash: hash}
	}
	add("PSS SHA-256", hashed(key, pss(1, 1, null, 32), options(crypto.SHA256, 32)))
	add("PSS SHA-384", hashed(key, pss(2, 2, null, 48), options(crypto.SHA384, 48)))
	add("PSS SHA-512", hashed(key, pss(3, 3, null, 64), options(crypto.SHA512, 64)))
	add("PSS SHA-256 without null", hashed(key, pss(1, 1, nil, 32), options(crypto.SHA256, 32)))
	add("PSS SHA-256 short salt", hashed(key, pss(1, 1, null, 20), options(crypto.SHA256, 20)))
	add("PSS SHA-256 salt other than said", hashed(key, pss(1, 1, null, 32), options(crypto.SHA256, 20)))
	add("PSS SHA-256 mixed hashes", hashed(key, pss(1, 2, null, 32), options(crypto.SHA256, 32)))
	add("PSS SHA-256 with trailer", hashed(key, pss(1, 1, null, 32, explicit(3, number(1))), options(crypto.SHA256, 32)))
	add("PSS SHA-256 with another trailer", hashed(key, pss(1, 1, null, 32, explicit(3, number(2))), options(crypto.SHA256, 32)))
	add("PSS without parameters", hashed(key, sequence(oid(1, 2, 840, 113549, 1, 1, 10)), options(crypto.SHA256, 32)))

	mismatch := ecdsaSigner(elliptic.P256(), 2, crypto.SHA256)
	mismatch.algorithm = pkcs1(11)
	add("P-256 named as RSA", mismatch)
}

// Command api_keys writes ../api_keys.json: certificates of every sort, and what the original
// server's check, which is Go's x509 verification, says about each of them.
//
//	cd tests/golden/api_keys && go run . > ../api_keys.json
//
// Keys are made anew on each run; verdicts do not change. The time of verification is fixed.
package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"
)

// now is the time of every verification: 2024-07-01 00:00:00 UTC.
var now = time.Unix(1719792000, 0)

// signer signs what a certificate says, with the name of the algorithm used.
type signer struct {
	key       crypto.Signer
	algorithm []byte
	sign      func(message []byte) []byte
}

func (s signer) info() []byte { return must(x509.MarshalPKIXPublicKey(s.key.Public())) }

// certificate holds every field as encoded, so that any of them may be odd.
type certificate struct {
	version, serial, inner, outer, issuer, notBefore, notAfter, subject, info, between []byte
	extensions                                                                         [][]byte
	noExtensions                                                                       bool
	after, last                                                                        []byte
}

func (c certificate) body() []byte {
	parts := [][]byte{c.version, c.serial, c.inner, c.issuer, sequence(c.notBefore, c.notAfter), c.subject, c.info, c.between}
	if !c.noExtensions {
		parts = append(parts, explicit(3, sequence(c.extensions...)))
	}
	return sequence(parts...)
}

func (c certificate) signed(s signer) []byte {
	body := c.body()
	return append(sequence(body, c.outer, bits(s.sign(body)), c.last), c.after...)
}

type authority struct {
	Name string `json:"name"`
	DER  string `json:"der"`

	der    []byte
	cert   *x509.Certificate
	signer signer
}

type key struct {
	Name      string `json:"name"`
	Authority string `json:"authority"`
	DER       string `json:"der"`
	Accepted  bool   `json:"accepted"`
	Error     string `json:"error,omitempty"`
}

// flips are verdicts about one certificate with one bit of its body changed and signed again, in
// order of byte and bit: 1 is accepted.
type flips struct {
	Name      string `json:"name"`
	Authority string `json:"authority"`
	Body      string `json:"body"`
	Algorithm string `json:"algorithm"`
	Verdicts  string `json:"verdicts"`
}

type corpus struct {
	Source      string       `json:"source"`
	Now         int64        `json:"now"`
	SigningKey  string       `json:"signing_key_pkcs8"`
	Authorities []*authority `json:"authorities"`
	Keys        []key        `json:"keys"`
	Flips       []flips      `json:"flips"`
}

// check is what the original server does with a decoded key.
func check(ca *x509.Certificate, der []byte) error {
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	chains, err := leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now})
	if err != nil {
		return err
	}
	if len(chains) != 1 || len(chains[0]) != 2 || !chains[0][1].Equal(ca) {
		return fmt.Errorf("invalid chain of trust")
	}
	return nil
}

func (c *corpus) authority(name string, s signer, der []byte) *authority {
	a := &authority{name, base64.StdEncoding.EncodeToString(der), der, must(x509.ParseCertificate(der)), s}
	c.Authorities = append(c.Authorities, a)
	return a
}

func (c *corpus) key(name string, a *authority, der []byte) {
	err := check(a.cert, der)
	k := key{name, a.Name, base64.StdEncoding.EncodeToString(der), err == nil, ""}
	if err != nil {
		k.Error = err.Error()
	}
	c.Keys = append(c.Keys, k)
}

func (c *corpus) flip(name string, a *authority, leaf certificate) {
	body := leaf.body()
	var verdicts strings.Builder
	for at := range body {
		for bit := range 8 {
			body[at] ^= 1 << bit
			der := sequence(body, leaf.outer, bits(a.signer.sign(body)))
			body[at] ^= 1 << bit
			if check(a.cert, der) == nil {
				verdicts.WriteByte('1')
			} else {
				verdicts.WriteByte('0')
			}
		}
	}
	encode := base64.StdEncoding.EncodeToString
	c.Flips = append(c.Flips, flips{name, a.Name, encode(body), encode(leaf.outer), verdicts.String()})
}

func ed25519Signer() signer {
	seed := sha256.Sum256([]byte("data-sync test authority"))
	return ed25519Of(ed25519.NewKeyFromSeed(seed[:]))
}

func ed25519Of(key ed25519.PrivateKey) signer {
	return signer{key, sequence(oid(1, 3, 101, 112)), func(message []byte) []byte { return ed25519.Sign(key, message) }}
}

func hashed(key crypto.Signer, algorithm []byte, options crypto.SignerOpts) signer {
	return signer{key, algorithm, func(message []byte) []byte {
		hash := options.HashFunc().New()
		hash.Write(message)
		return must(key.Sign(rand.Reader, hash.Sum(nil), options))
	}}
}

func ecdsaSigner(curve elliptic.Curve, arc int, hash crypto.Hash) signer {
	return hashed(must(ecdsa.GenerateKey(curve, rand.Reader)), sequence(oid(1, 2, 840, 10045, 4, 3, arc)), hash)
}

func main() {
	c := &corpus{
		Source:     "go run . in tests/golden/api_keys",
		Now:        now.Unix(),
		SigningKey: base64.StdEncoding.EncodeToString(must(x509.MarshalPKCS8PrivateKey(ed25519Signer().key))),
	}
	c.fill()
	encoder := json.NewEncoder(os.Stdout)
	encoder.SetIndent("", " ")
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(c); err != nil {
		panic(err)
	}
}

// rsaKey is of a size that Go still signs with.
func rsaKey(size int) *rsa.PrivateKey { return must(rsa.GenerateKey(rand.Reader, size)) }

package pgdump

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// An archive in pg_dump's custom format begins with its table of contents: one record per object, whose fields have
// lengths. So nothing that a user can write (a comment, a function's body, a name) is taken for structure.
//
// The layout is that of WriteHead and WriteToc in Postgres' pg_backup_archiver.c. It depends on the version of the
// archive: 1.12 is what pg_dump up to 10 writes, 1.16 is that of 17 and 18.

// ErrArchive says that an archive cannot be read: it is damaged, or of a version that is not known.
var ErrArchive = errors.New("pg_dump's archive cannot be read")

const (
	oldestArchive, newestArchive = 12, 16 // 1.12 to 1.16

	archiveAccessMethods = 14 // from this version on, entries have a table access method
	archiveCompression   = 15 // the head has one byte for how the data is compressed
	archiveKinds         = 16 // entries have the kind of a relation
)

// Sections as the archive numbers them. Others hold no definitions.
const (
	sectionNone, sectionPreData, sectionPostData = 1, 2, 4
)

// archive reads an archive from its beginning. After an error, it reads nothing but zeros.
type archive struct {
	rest    []byte
	version int
	intSize int
	err     error
}

func (a *archive) failf(format string, args ...any) {
	if a.err == nil {
		a.err = fmt.Errorf("%w: %s", ErrArchive, fmt.Sprintf(format, args...))
	}
	a.rest = nil
}

// bytes reads n bytes. They are not copied.
func (a *archive) bytes(n int) []byte {
	if n < 0 || n > len(a.rest) {
		a.failf("it ends too early")
		return nil
	}
	read := a.rest[:n]
	a.rest = a.rest[n:]
	return read
}

func (a *archive) byte() byte {
	if b := a.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

// int reads a number: a byte for its sign, then its bytes, the lowest first.
func (a *archive) int() int {
	negative := a.byte() != 0
	var digits [8]byte
	copy(digits[:], a.bytes(a.intSize))
	n := binary.LittleEndian.Uint64(digits[:])
	if n > 1<<31 {
		a.failf("a number is too large")
		return 0
	}
	if negative {
		return -int(n)
	}
	return int(n)
}

// text reads a string; ok: it is not NULL.
func (a *archive) text() (s string, ok bool) {
	n := a.int()
	if n < 0 || a.err != nil {
		return "", false
	}
	return string(a.bytes(n)), a.err == nil
}

func (a *archive) string() string {
	s, _ := a.text()
	return s
}

func (a *archive) oid() uint32 {
	text := a.string()
	n, err := strconv.ParseUint(text, 10, 32)
	if err != nil && a.err == nil {
		a.failf("%.20q is no OID", text)
	}
	return uint32(n)
}

// head reads what comes before the entries, and returns how long the place of an entry's data is.
func (a *archive) head() (placeSize int) {
	if string(a.bytes(5)) != "PGDMP" {
		a.failf("it is none")
		return 0
	}
	major, minor := a.byte(), a.byte()
	a.byte() // of the version
	if a.version = int(minor); a.err == nil && (major != 1 || a.version < oldestArchive || a.version > newestArchive) {
		a.failf("its version is %d.%d, and 1.%d to 1.%d are known", major, minor, oldestArchive, newestArchive)
		return 0
	}
	a.intSize = int(a.byte())
	placeSize = int(a.byte())
	if a.err == nil && (a.intSize < 1 || a.intSize > 8 || placeSize > 8) {
		a.failf("numbers of %d bytes", a.intSize)
		return 0
	}
	a.byte() // format
	if a.version >= archiveCompression {
		a.byte()
	} else {
		a.int()
	}
	for range 7 { // when it was made
		a.int()
	}
	for range 3 { // the database's name, the server's version, pg_dump's
		a.text()
	}
	return placeSize
}

// readArchive returns the definitions that an archive has, in the order in which they can be created.
func readArchive(data []byte) ([]Entry, error) {
	a := &archive{rest: data}
	placeSize := a.head()
	count := a.int()
	var entries []Entry
	section := sectionNone
	databases := map[int]bool{}
	for range count {
		e, own := a.entry(placeSize)
		if a.err != nil {
			return nil, a.err
		}
		if own != sectionNone { // a comment belongs to the section of what stands before it
			section = own
		}
		if e.Type == "DATABASE" {
			databases[e.ID] = true
		}
		switch section {
		case sectionPreData:
			e.Section = PreData
		case sectionPostData:
			e.Section = PostData
		default:
			continue
		}
		if e.SQL != "" && !e.ofDatabase(databases) {
			entries = append(entries, e)
		}
	}
	return entries, a.err
}

// ofDatabase tells whether an entry is about the database or the session rather than an object in it.
func (e Entry) ofDatabase(databases map[int]bool) bool {
	switch e.Type {
	case "ENCODING", "STDSTRINGS", "SEARCHPATH", "DATABASE", "DATABASE PROPERTIES", "STATISTICS DATA":
		return true
	case "COMMENT":
		return len(e.Needs) == 1 && databases[e.Needs[0]]
	}
	return false
}

// entry reads one record.
func (a *archive) entry(placeSize int) (e Entry, section int) {
	e.ID = a.int()
	a.int() // whether it has data
	e.Class, e.OID = a.oid(), a.oid()
	e.Name, e.Type = a.string(), a.string()
	section = a.int()
	e.SQL = strings.TrimSpace(a.string())
	e.Drop = strings.TrimSpace(a.string())
	a.text() // COPY statement
	e.Schema = a.string()
	a.text() // tablespace
	if a.version >= archiveAccessMethods {
		a.text()
	}
	if a.version >= archiveKinds {
		a.int()
	}
	e.Owner = a.string()
	a.text() // whether rows have OIDs
	for {
		text, ok := a.text()
		if !ok {
			break
		}
		id, err := strconv.Atoi(text)
		if err != nil {
			a.failf("%.20q is no number of an entry", text)
			break
		}
		e.Needs = append(e.Needs, id)
	}
	a.byte() // whether its data has a place
	a.bytes(placeSize)
	return e, section
}

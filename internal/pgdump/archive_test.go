package pgdump

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// archiveWriter writes archives as pg_dump does.
type archiveWriter struct {
	bytes.Buffer
	version int
}

func (w *archiveWriter) int(n int) {
	sign := byte(0)
	if n < 0 {
		sign, n = 1, -n
	}
	w.WriteByte(sign)
	w.Write(binary.LittleEndian.AppendUint32(nil, uint32(n)))
}

func (w *archiveWriter) text(s string) {
	w.int(len(s))
	w.WriteString(s)
}

func (w *archiveWriter) null() { w.int(-1) }

func newArchive(version, entries int) *archiveWriter {
	w := &archiveWriter{version: version}
	w.WriteString("PGDMP")
	w.Write([]byte{1, byte(version), 0, 4, 8, 1})
	if version >= archiveCompression {
		w.WriteByte(0)
	} else {
		w.int(0)
	}
	for range 7 {
		w.int(1)
	}
	w.text("app")
	w.text("15.4")
	w.null()
	w.int(entries)
	return w
}

func (w *archiveWriter) entry(section int, e Entry) {
	w.int(e.ID)
	w.int(0)
	w.text(strconv.Itoa(int(e.Class)))
	w.text(strconv.Itoa(int(e.OID)))
	w.text(e.Name)
	w.text(e.Type)
	w.int(section)
	w.text(e.SQL + "\n")
	w.text(e.Drop + "\n")
	w.null()
	if e.Schema == "" {
		w.null()
	} else {
		w.text(e.Schema)
	}
	w.null()
	if w.version >= archiveAccessMethods {
		w.text("heap")
	}
	if w.version >= archiveKinds {
		w.int('r')
	}
	w.text(e.Owner)
	w.text("false")
	for _, id := range e.Needs {
		w.text(strconv.Itoa(id))
	}
	w.null()
	w.Write(make([]byte, 9))
}

const lookalike = "x\n--\n-- Name: a; Type: TABLE; Schema: b; Owner: c\n--\n\nDROP TABLE " +
	"t;\n\\restrict\nPGDMP\x01\x0e\x00\n--\n-- PostgreSQL database dump complete\n--"

func sampleArchive(version int) (data []byte, want []Entry) {
	w := newArchive(version, 6)
	table := Entry{ID: 7, Section: PreData, Type: "TABLE", Schema: "a b", Name: lookalike, Owner: "me",
		SQL: "CREATE TABLE", Drop: "DROP TABLE", Class: 1259, OID: 4000000000}
	comment := Entry{ID: 8, Section: PreData, Type: "COMMENT", Name: "TABLE x", SQL: "COMMENT ON TABLE x IS '" +
		lookalike + "';", Needs: []int{7}}
	index := Entry{ID: 9, Section: PostData, Type: "INDEX", Schema: "a b", Name: "i", SQL: "CREATE INDEX",
		Needs: []int{7, 3}}
	w.entry(sectionPreData, Entry{ID: 1, Type: "ENCODING", SQL: "SET client_encoding = 'UTF8';"})
	w.entry(sectionPreData, Entry{ID: 2, Type: "DATABASE", SQL: "CREATE DATABASE app;"})
	w.entry(sectionNone, Entry{ID: 3, Type: "COMMENT", SQL: "COMMENT ON DATABASE app IS 'x';", Needs: []int{2}})
	w.entry(sectionPreData, table)
	w.entry(sectionNone, comment)
	w.entry(sectionPostData, index)
	return w.Bytes(), []Entry{table, comment, index}
}

func TestReadArchive(t *testing.T) {
	t.Parallel()
	for version := oldestArchive; version <= newestArchive; version++ {
		data, want := sampleArchive(version)
		got, err := readArchive(data)
		require.NoError(t, err)
		require.Equal(t, want, got)
		for end := range data {
			_, err := readArchive(data[:end])
			require.ErrorIs(t, err, ErrArchive, "cut at %d of %d", end, len(data))
		}
	}
	for name, data := range map[string][]byte{
		"nothing":     nil,
		"a script":    []byte("--\n-- PostgreSQL database dump\n--\n"),
		"older":       newArchive(oldestArchive-1, 0).Bytes(),
		"newer":       newArchive(newestArchive+1, 0).Bytes(),
		"many":        newArchive(14, 1<<30).Bytes(),
		"wide number": []byte("PGDMP\x01\x0e\x00\x09\x08\x01"),
	} {
		_, err := readArchive(data)
		require.ErrorIs(t, err, ErrArchive, name)
	}
}

// No archive, however damaged, makes the reader panic, or take more memory than the archive has bytes.
func FuzzReadArchive(f *testing.F) {
	for _, version := range []int{12, 14, 15, 16} {
		data, _ := sampleArchive(version)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, err := readArchive(data)
		if err != nil {
			require.ErrorIs(t, err, ErrArchive)
		}
		size := 0
		for _, e := range entries {
			size += len(e.Name) + len(e.SQL) + len(e.Drop) + len(e.Schema) + len(e.Owner) + len(e.Type) + len(e.Needs)
		}
		require.LessOrEqual(t, size, len(data))
	})
}

package foreign

import (
	"fmt"
	"strings"
)

// value returns a value for a column, as an SQL literal with its type.
func (f *Filler) value(c *column) string {
	return literal(f.text(c)) + "::" + c.typ
}

func literal(s string) string {
	if strings.Contains(s, `\`) {
		return " E'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", "''") + "'"
	}
	return "'" + strings.ReplaceAll(s, "'", "''") + "'"
}

var words = []string{"alpha", "Beta", "gamma delta", "Zoë", "日本", "it's", `back\slash`, "", "tab\tnew\nline"}

// text returns a value in the type's text form.
func (f *Filler) text(c *column) string {
	f.serial++
	n := f.serial
	if len(c.words) > 0 && f.random.IntN(3) > 0 {
		return strings.ReplaceAll(c.words[f.random.IntN(len(c.words))], "''", "'")
	}
	if c.element != nil && c.category == "A" {
		return f.array(c)
	}
	if len(c.labels) > 0 {
		return c.labels[f.random.IntN(len(c.labels))]
	}
	if c.kind == "c" { // a composite type: its fields may all be NULL
		return ""
	}
	return f.scalar(c, n)
}

func (f *Filler) array(c *column) string {
	if f.random.IntN(3) == 0 {
		return "{}"
	}
	element := strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(f.text(c.element))
	return `{"` + element + `"}`
}

func (f *Filler) scalar(c *column, n int) string {
	switch c.base {
	case "bool":
		return []string{"t", "f"}[n%2]
	case "int2":
		return fmt.Sprint(1 + n%32000)
	case "int4", "int8", "oid", "xid", "xid8", "cid":
		return fmt.Sprint(n)
	case "float4", "float8":
		return fmt.Sprintf("%d.%d", n%1000, f.random.IntN(1_000_000))
	case "numeric":
		return f.numeric(c, n)
	case "money":
		return fmt.Sprintf("%d.50", n%100)
	case "text", "varchar", "bpchar", "citext", "name":
		return f.word(c, n)
	case "char":
		return string(rune('a' + n%26))
	case "bytea":
		return fmt.Sprintf(`\x%08x`, n)
	case "date":
		return fmt.Sprintf("20%02d-%02d-%02d", 10+n%16, 1+n%12, 1+n%28)
	case "timestamp", "timestamptz":
		return fmt.Sprintf("20%02d-%02d-%02d %02d:%02d:%02d.%06d",
			10+n%16, 1+n%12, 1+n%28, n%24, n%60, n%60, f.random.IntN(1_000_000))
	case "time", "timetz":
		return fmt.Sprintf("%02d:%02d:%02d", n%24, n%60, n%60)
	case "interval":
		return fmt.Sprintf("%d days %d seconds", n%30, n%86400)
	case "uuid":
		return fmt.Sprintf("%08x-%04x-4%03x-a%03x-%012x",
			n, n%65536, f.random.IntN(4096), f.random.IntN(4096), f.random.Int64N(1<<47))
	case "json", "jsonb":
		return []string{"{}", fmt.Sprintf(`{"n": %d, "ä": [1, null]}`, n), "[]"}[n%3]
	case "jsonpath":
		return "$.a"
	case "inet":
		return fmt.Sprintf("10.%d.%d.%d", n/65536%256, n/256%256, n%256)
	case "cidr":
		return fmt.Sprintf("10.%d.%d.0/24", n/256%256, n%256)
	case "macaddr":
		return fmt.Sprintf("08:00:2b:01:%02x:%02x", n/256%256, n%256)
	case "macaddr8":
		return fmt.Sprintf("08:00:2b:01:02:03:%02x:%02x", n/256%256, n%256)
	case "bit":
		return strings.Repeat("1", max(1, c.length))
	case "varbit":
		return "101"
	default:
		return f.rare(c, n)
	}
}

// rare has types that few columns are of.
func (f *Filler) rare(c *column, n int) string {
	switch c.base {
	case "tsvector":
		return fmt.Sprintf("'word%d':1", n)
	case "tsquery":
		return "word & other"
	case "xml":
		return fmt.Sprintf("<a>%d</a>", n)
	case "hstore":
		return fmt.Sprintf(`"a"=>"%d", "b"=>NULL`, n)
	case "ltree":
		return fmt.Sprintf("a.b%d", n)
	case "lquery":
		return "a.*"
	case "cube":
		return fmt.Sprintf("(%d, 2)", n)
	case "point":
		return fmt.Sprintf("(%d,2)", n)
	case "line":
		return "{1,2,3}"
	case "lseg", "box":
		return "(1,2),(3,4)"
	case "path", "polygon":
		return "((1,2),(3,4),(5,6))"
	case "circle":
		return "<(1,2),3>"
	case "pg_lsn":
		return fmt.Sprintf("0/%X", n)
	case "int4range", "int8range", "numrange":
		return fmt.Sprintf("[%d,%d)", n*10, n*10+5)
	case "daterange", "tsrange", "tstzrange":
		return fmt.Sprintf("[20%02d-01-%02d,20%02d-02-01)", 10+n%80, 1+n%28, 10+n%80)
	case "regclass", "regproc", "regtype", "regprocedure", "regoper", "regrole", "regnamespace", "regconfig":
		return "-"
	default:
		if c.category == "R" {
			return map[bool]string{true: "{}", false: "empty"}[strings.HasSuffix(c.base, "multirange")]
		}
		return f.word(c, n)
	}
}

func (f *Filler) numeric(c *column, n int) string {
	if c.precision == 0 {
		return fmt.Sprintf("%d.%d", n, f.random.IntN(1_000_000_000))
	}
	limit := 1
	for range min(6, max(0, c.precision-c.scale)) {
		limit *= 10
	}
	return fmt.Sprint(n % limit)
}

func (f *Filler) word(c *column, n int) string {
	s := fmt.Sprintf("%d %s", n, words[f.random.IntN(len(words))])
	if f.random.IntN(3) > 0 {
		s = fmt.Sprintf("w%d", n)
	}
	if runes := []rune(s); c.length > 0 && len(runes) > c.length {
		s = strings.TrimSpace(string(runes[:c.length]))
	}
	return s
}

package migrator

import (
	"context"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/heroku-migrator/migrator/internal/definition"
)

// SchemaName is the schema of our own, on the source (change logs) and on the target (journal).
// Every object that we make outside of it has a name that begins with it.
const SchemaName = "heroku_migrator"

// Source is the database that is left. The implementation for Heroku, which captures changes by
// triggers, is [Heroku]; a team can wrap it, or write its own.
//
// Methods may be called concurrently. All of them return when their context is done, and leave
// nothing half done.
type Source interface {
	Database
	Capturer
	Fencer
	Returner

	// Catalog lists the tables to be moved, with their keys, columns and sizes.
	Catalog(ctx context.Context) (*Catalog, error)

	// DumpSchema returns the definition of everything but the rows, in an order in which it can be created, and the
	// fingerprint of the schema at the instant that they are of.
	DumpSchema(ctx context.Context) (objects []SchemaObject, fingerprint string, err error)

	// Claim makes the migration known on the source and its epoch the only one that may change
	// anything of ours there. It is called by a process that has just taken the lead on the target,
	// and fails with [ErrLostLead] if a later epoch has claimed the source. With create false, it
	// does nothing where no migration was claimed before.
	Claim(ctx context.Context, claim Claim, create bool) error

	// Load tells how busy the source is with other work than ours.
	Load(ctx context.Context) (Load, error)
}

// Capturer is a source's part in replication.
type Capturer interface {
	ChangeLog

	// Capture makes every later change to the table leave its key in the table's change log (I1).
	// It returns once that is committed. Where it is installed already, it makes sure that it knows the names of the
	// key's columns. The returned error is [ErrBusy] when one attempt did not get its locks; attempts are short, so
	// that the application never waits long, and the caller repeats them.
	Capture(ctx context.Context, table *Table) error

	// Adopt takes up relations that have become partitions of a captured table: their TRUNCATE is captured from now on,
	// and their rows come with the next round. It fails with [ErrBusy] as Capture does.
	Adopt(ctx context.Context, table *Table, leaves []Relation) error

	// Forget may drop the logs of those of the tables, by their OIDs, that are not there any more.
	Forget(ctx context.Context, ids []uint32) error

	// PlanReads has the server plan every query by which the tables will be read, and executes none. It returns those
	// that fail.
	PlanReads(ctx context.Context, tables []*Table) ([]RehearsalFailure, error)

	// ClearLog forgets what the log holds of a table, which is copied from scratch after it (I2): neither rounds nor
	// chunks may read the log meanwhile.
	ClearLog(ctx context.Context, table *Table) error

	// Touch enters keys, in COPY text format, into the table's change log, as if the application had
	// changed these rows: the next round brings them over anew. With all true, the whole table.
	Touch(ctx context.Context, table *Table, keys io.Reader, all bool) error
}

// ChangeLog is where changes are read: on the source, and after the switch on the target.
type ChangeLog interface {
	// Snapshot opens an instant for reading.
	Snapshot(ctx context.Context) (Snapshot, error)

	// Trim forgets the changes to the tables that are visible at the position, which must be
	// durable on the other side.
	Trim(ctx context.Context, tables []*Table, upTo Position) error

	// LogSize is how many bytes the log takes on disk.
	LogSize(ctx context.Context) (int64, error)

	// Resend has the next round send whole those of the tables whose log was trimmed, or all of them: their logs then
	// say all there is to say about them, and may be read from any position.
	Resend(ctx context.Context, tables []*Table, all bool) error
}

// Fencer keeps writers out: of the source in a switch, of the target in a revert.
type Fencer interface {
	// PrepareFence does what Fence needs and can be done before, while the application writes. It fails
	// with [ErrBusy] if a transaction was in the way; repeated, it does what is left. With Terminate, it ends the
	// sessions of those that were open for the drain time.
	PrepareFence(ctx context.Context, tables []*Table, cfg FenceConfig) error

	// Fence refuses every write to the tables from now on (I5), and returns when the last transaction
	// that had written to one of them has ended. One attempt of a few seconds; it fails with
	// [ErrBusy], and the application writes as before (unless cfg.Keep is set), if a transaction did not end.
	Fence(ctx context.Context, tables []*Table, cfg FenceConfig) error

	// Writers names the transactions that have written to the tables and have been open for longer than age: they are
	// in the way of Fence.
	Writers(ctx context.Context, tables []*Table, age time.Duration) ([]string, error)

	// Unfence lets the application write again. It does nothing if there is no fence.
	Unfence(ctx context.Context) error
}

// Returner is a source's part in the way back: behind its fence, it takes what is written on the target after the
// switch.
type Returner interface {
	// OpenWayBack makes the fenced source take rows as they come: triggers and rules of users are silent, foreign keys
	// are looked at when a transaction ends, and what is written is not captured. number tells one switch from the
	// next: a new one begins at the zero position. It fails with [ErrBusy] as Capture does; repeated, it does what is
	// left.
	OpenWayBack(ctx context.Context, tables []*Table, number int64) error

	// WayBackPosition is the position on the target up to which changes were applied here; the zero position, if that
	// was on another server, before a failover.
	WayBackPosition(ctx context.Context) (Position, error)

	// ApplyBack brings the tables of a round to the state of the target's snapshot and commits that together with the
	// position. With detach, foreign keys that act on other rows (CASCADE, for example) are taken away for the
	// transaction, at the price of checking them whole; without, it may fail with [ErrDetach]. When a constraint
	// refuses rows, it is taken away until CloseWayBack, and the error is [ErrConstraintTaken].
	ApplyBack(ctx context.Context, snapshot Snapshot, round Round, detach bool) error

	// ReturnLargeObjects makes the large objects those that the target has.
	ReturnLargeObjects(ctx context.Context, snapshot func(context.Context) (Snapshot, error)) (LargeObjectDiff, error)

	// SetSequences sets sequences to what they are on the target, and their margins beyond.
	SetSequences(ctx context.Context, sequences []Sequence) error

	// ListObjects lists what there is in the source's schema now.
	ListObjects(ctx context.Context) ([]definition.Object, error)

	// AddObjects makes what was added on the target, behind the fence, and notes what it could not make. It fails with
	// [ErrBusy] as Capture does.
	AddObjects(ctx context.Context, additions *Additions) error

	// CloseWayBack puts triggers, rules and foreign keys back exactly as they were before OpenWayBack, and constraints
	// that ApplyBack has taken away as NOT VALID ones. It fails with [ErrBusy] as Capture does; repeated, it does what
	// is left. What was applied stays.
	CloseWayBack(ctx context.Context) error

	// ValidateConstraints validates what CloseWayBack put back NOT VALID and was validated before, while the
	// application writes. It returns those that rows do not satisfy, with the reason; they stay NOT VALID. It fails
	// with [ErrBusy] if others had to wait for one, having tried the rest; repeated, it does what is left.
	ValidateConstraints(ctx context.Context) (left []string, err error)
}

// Database is what both ends have in common.
type Database interface {
	// Identify tells who and what the server is.
	Identify(ctx context.Context) (Identity, error)

	// Inspect runs this end's part of preflight. It changes nothing. A finding says that the
	// database is not fit; an error, that the inspection could not be made.
	Inspect(ctx context.Context) ([]Finding, error)

	// Release removes what we put on the application's tables, and on the source everything of ours (I8). On
	// the target, the journal stays. It is repeated until it succeeds, and goes on where it was interrupted.
	Release(ctx context.Context) error

	// Close frees what is held in this process.
	Close()
}

// Snapshot is one instant of the source. It must be closed; it may not be used concurrently.
type Snapshot interface {
	Extras

	// Position tells which transactions the snapshot sees.
	Position() Position

	// Fingerprint sums up the schema, as Catalog does.
	Fingerprint(ctx context.Context) (string, error)

	// CopyChunk writes the chunk's rows, in the COPY format of table.Format with the columns of table.Columns
	// that are not generated, but for those whose key is in the change log. It fails with [ErrRewritten] when the
	// relation was rewritten since the chunk was planned.
	CopyChunk(ctx context.Context, table *Table, chunk *Chunk, w io.Writer) (rows int64, err error)

	// Hold locks the tables against being rewritten or emptied until the snapshot is closed. It fails with
	// [ErrRewritten] when one of them was since the snapshot was taken.
	Hold(ctx context.Context, tables []*Table) error

	// Changes tells which of the tables have changes that are visible here and were not visible at
	// the position given (the zero position: since capture), and holds these tables. When that fails with
	// [ErrRewritten], they are returned nevertheless.
	Changes(ctx context.Context, tables []*Table, since Position) ([]Change, error)

	// CopyKeys writes the keys of these changes, each once, in COPY text format. For a table without a key: the
	// row's image as text, and how many rows with this image came (or, below 0, went).
	CopyKeys(ctx context.Context, table *Table, since Position, w io.Writer) (keys int64, err error)

	// CopyRows writes the rows that have these keys now, in the COPY format of table.Format; of a table without
	// a key, all rows.
	CopyRows(ctx context.Context, table *Table, since Position, w io.Writer) (rows int64, err error)

	// Sequences reads every sequence.
	Sequences(ctx context.Context) ([]Sequence, error)

	// Digest summarises the table's rows, so that two databases can be compared.
	Digest(ctx context.Context, table *Table) (Digest, error)

	// Close ends the snapshot.
	Close(ctx context.Context) error
}

// Extras are what a database holds beside the rows of its tables.
type Extras interface {
	// LargeObjects writes one line for each piece of each large object, in COPY text format: the object's OID,
	// the piece's offset, its length, its SHA-256 and, with the first piece, the object's comment.
	LargeObjects(ctx context.Context, w io.Writer) (pieces int64, err error)

	// CopyLargeObjects writes these pieces, in COPY binary format: OID, offset, content. Objects that do not
	// exist are left out.
	CopyLargeObjects(ctx context.Context, pieces []LargeObjectPiece, w io.Writer) (n int64, err error)

	// ExtensionTables lists the tables of extensions that hold rows of users, in an order in which they can be filled.
	ExtensionTables(ctx context.Context) ([]ExtensionTable, error)

	// CopyExtensionTable writes these columns of the users' rows, in COPY text format.
	CopyExtensionTable(ctx context.Context, table *ExtensionTable, columns []string, w io.Writer) (rows int64,
		err error)
}

// Identity is what a server says of itself.
type Identity struct {
	System     string // system identifier
	Timeline   int64
	Database   string
	Role       string
	Version    int    // as server_version_num: 150018
	VersionStr string // 15.18
	Encoding   string
	Collate    string // LC_COLLATE of the database
	CType      string // LC_CTYPE of the database
	Size       int64  // bytes of the database
	// Connections is how many connections to it this process can have: what is free for its role, and in its pool.
	Connections int
	// ParallelWorkers is max_parallel_workers: as near as SQL comes to the number of cores.
	ParallelWorkers int
	// RoundTrip is about how long the network takes there and back.
	RoundTrip time.Duration
	Host      string
	Port      int
}

// Major is the major version: 15.
func (i Identity) Major() int { return i.Version / 10000 }

// Load is how busy a server is with other work than ours.
type Load struct {
	// ActiveSessions are the sessions of others that execute something now, or wait for a lock or a disk.
	ActiveSessions int
	// ReplicaLag is how far the slowest follower is behind in replaying, if there is one and the role may see it.
	ReplicaLag time.Duration
	// Latency is how long a small query took, the network counted.
	Latency time.Duration
}

// Claim says which migration, and which process of it, wants to change the source.
type Claim struct {
	Migration string // a UUID made when the migration began
	Epoch     int64
}

// Catalog is what is to be moved.
type Catalog struct {
	Tables    []*Table
	Sequences []Relation
	// Fingerprint is another one when the schema is.
	Fingerprint string
	// SearchPath is where a session of the application finds names that have no schema.
	SearchPath string
}

// Relation names a relation.
type Relation struct {
	ID     uint32 `json:"id"` // its OID on the source
	Schema string `json:"schema"`
	Name   string `json:"name"`
}

// Ident is the relation's name, quoted for SQL.
func (r Relation) Ident() string { return pgx.Identifier{r.Schema, r.Name}.Sanitize() }

func (r Relation) String() string { return r.Schema + "." + r.Name }

// TableKind tells how the changes of a table can be seen.
type TableKind string

// The kinds of tables.
const (
	KindOrdinary    TableKind = "ordinary"
	KindPartitioned TableKind = "partitioned" // the root of a partitioned table, with all its leaves
	KindInherited   TableKind = "inherited"   // parent or child of classic inheritance
)

// Table is a unit of migration: an ordinary table, or a partitioned table with all its partitions.
type Table struct {
	Relation
	Kind    TableKind `json:"kind"`
	Columns []Column  `json:"columns"`
	Key     []string  `json:"key"` // columns of a NOT NULL unique key; empty if there is none
	Leaves  []Leaf    `json:"leaves"`
	// Checks are the definitions of its CHECK constraints, by name.
	Checks map[string]string `json:"checks,omitempty"`
	Rows   int64             `json:"rows"` // an estimate
	// Silenced tells that triggers of ours on it are, or were, disabled: changes may not have been captured.
	Silenced bool `json:"silenced,omitempty"`
	Unlogged bool `json:"unlogged,omitempty"`
	// Parents are those that it inherits from, if it is no partition.
	Parents []uint32 `json:"parents,omitempty"`
}

// Leaf is a relation that holds rows of a table: the table itself, or a partition.
type Leaf struct {
	Relation
	Filenode uint32 `json:"filenode"`
	Pages    int64  `json:"pages"` // of the heap
	Bytes    int64  `json:"bytes"` // heap and TOAST
	// Attached is another one when a partition, or one that it is in, was detached and attached again.
	Attached string `json:"attached,omitempty"`
}

// Column is a column of a table.
type Column struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	NotNull   bool   `json:"not_null,omitempty"`
	Generated bool   `json:"generated,omitempty"`
	Binary    bool   `json:"binary,omitempty"` // its type's binary form is the same on both sides

	Interval bool `json:"interval,omitempty"` // its type holds intervals

	Num       int     `json:"num,omitempty"`       // attnum: stays when the column is renamed
	Default   string  `json:"default,omitempty"`   // an expression; of a generated column, what it is generated from
	Missing   *string `json:"missing,omitempty"`   // what rows have that were there before the column
	Identity  string  `json:"identity,omitempty"`  // a: ALWAYS, d: BY DEFAULT
	Virtual   bool    `json:"virtual,omitempty"`   // generated when it is read
	Inherited bool    `json:"inherited,omitempty"` // from a parent of classic inheritance
	Collation string  `json:"collation,omitempty"` // if it is not its type's; quoted
	Mixed     bool    `json:"mixed,omitempty"`     // Missing is not the same in all partitions
	Written   string  `json:"written,omitempty"`   // the transaction that changed its definition last
}

// same tells whether two columns hold the same values.
func (c Column) same(o Column) bool {
	return c.Name == o.Name && c.Type == o.Type && c.NotNull == o.NotNull && c.Generated == o.Generated &&
		c.Num == o.Num
}

// Format is the COPY format of the table's rows: binary where that is safe for every column, else text.
func (t *Table) Format() string {
	for _, c := range t.Columns {
		if !c.Generated && !c.Binary {
			return "text"
		}
	}
	return "binary"
}

// Bytes is the size on disk of the table's rows, TOAST counted.
func (t *Table) Bytes() int64 {
	var n int64
	for _, l := range t.Leaves {
		n += l.Bytes
	}
	return n
}

// Only is the table's name for FROM, without the rows of tables that inherit from it.
func (t *Table) Only() string {
	if t.Kind == KindPartitioned {
		return t.Ident()
	}
	return "ONLY " + t.Ident()
}

// copied returns the quoted columns that are copied, each with the prefix: generated ones are
// computed again by the target.
func (t *Table) copied(prefix string) string {
	var b []string
	for _, c := range t.Columns {
		if !c.Generated {
			b = append(b, prefix+quoteName(c.Name))
		}
	}
	return strings.Join(b, ", ")
}

// copiedList is the list of columns for COPY. It is empty where all are generated: SQL cannot write a list of none, and
// without one COPY means all that are not generated.
func (t *Table) copiedList() string {
	columns := t.copied("")
	if columns == "" {
		return ""
	}
	return "(" + columns + ")"
}

// insertList is the same for INSERT, into identity columns too.
func (t *Table) insertList() string {
	if list := t.copiedList(); list != "" {
		return list + " OVERRIDING SYSTEM VALUE"
	}
	return ""
}

// keyGenerated tells whether a column of the key is computed from others.
func (t *Table) keyGenerated() bool {
	return slices.ContainsFunc(t.Columns, func(c Column) bool { return c.Generated && slices.Contains(t.Key, c.Name) })
}

// keyList returns the quoted key columns, each with the prefix.
func (t *Table) keyList(prefix string) string {
	b := make([]string, len(t.Key))
	for i, k := range t.Key {
		b[i] = prefix + quoteName(k)
	}
	return strings.Join(b, ", ")
}

// sameShape tells whether two catalog entries describe the same table, for the search of drift.
func (t *Table) sameShape(o *Table) bool {
	sameLeaves := len(t.Leaves) == len(o.Leaves)
	for i := 0; sameLeaves && i < len(t.Leaves); i++ {
		sameLeaves = t.Leaves[i].Relation == o.Leaves[i].Relation
	}
	return t.Relation == o.Relation && t.Kind == o.Kind && sameLeaves &&
		slices.EqualFunc(t.Columns, o.Columns, Column.same) && slices.Equal(t.Key, o.Key)
}

// Chunk is a part of a table that is copied in one transaction: a range of pages of one leaf.
type Chunk struct {
	Table uint32   `json:"table"`
	No    int      `json:"no"`
	Plan  int      `json:"plan"` // counts how often the table's copy was planned
	Leaf  Relation `json:"leaf"`
	// Filenode is the leaf's at planning: row addresses are good for this file alone.
	Filenode uint32 `json:"filenode"`
	From     int64  `json:"from"`  // first page
	To       int64  `json:"to"`    // page after the last; -1: to the end
	Bytes    int64  `json:"bytes"` // planned share of the table's bytes on disk
	// At is the position of the snapshot that it was read from; noted for tables without a key.
	At Position `json:"-"`
}

// Change says that a table has changed.
type Change struct {
	Table *Table
	// Rows is how many entries the change log has: an upper bound of the rows changed.
	Rows int64
	// Truncated are the relations that were emptied by TRUNCATE: the table, or leaves of it.
	Truncated []Relation
}

// Sequence is a sequence's definition and state.
type Sequence struct {
	Relation
	Increment, Min, Max, Cache int64
	LastValue                  int64
	IsCalled                   bool
	// Margin is by how many steps it is set beyond its value on the other side.
	Margin int64
}

// Digest summarises rows, independent of their order.
type Digest struct {
	Rows int64
	Sum  string
}

func quoteName(name string) string { return pgx.Identifier{name}.Sanitize() }

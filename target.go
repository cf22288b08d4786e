package migrator

import (
	"context"
	"io"

	"github.com/heroku-migrator/migrator/internal/definition"
)

// Target is the database that is moved to. The implementation for PlanetScale is [PlanetScale]; it works
// with any Postgres whose role owns its database.
//
// Methods may be called concurrently. Those that change anything do so in one transaction, which checks
// at its end that this process still leads (I6): they fail with [ErrLostLead] otherwise, or with
// [ErrNotLeader] if it never did. When their context is done they return, and nothing is committed.
type Target interface { //nolint:interfacebloat // its parts stand below, by phase
	Database
	Switcher
	Copier
	Giver

	// Journal is where the migration's state is kept, in the same database as its rows.
	Journal() *Journal

	// AppliesSilently tells whether foreign keys and triggers stay silent while changes are applied
	// (session_replication_role can be set). If not, they have to be created at the switch.
	AppliesSilently(ctx context.Context) (bool, error)

	// Create creates the objects and marks them done in the journal.
	Create(ctx context.Context, objects []SchemaObject) error

	// Rehearse creates the objects that are pending, in their order, and rolls that back. Those in state left_out or
	// skipped are not there. The error is not nil if the rehearsal could not be held.
	Rehearse(ctx context.Context, objects []SchemaObject) (*Rehearsal, error)

	// ChangeSchema carries out a change of the schema, and records what there is then. A step that has an object may
	// fail, which is recorded with it; any other failure undoes all but the labels.
	ChangeSchema(ctx context.Context, change *SchemaChange) error

	// HoldBack takes a CHECK away that refused rows of the source, as the error says, and has the switch add it NOT
	// VALID. It returns the constraint's name, or nothing if the error names none.
	HoldBack(ctx context.Context, cause error) (name string, err error)

	// ValidateConstraint validates one that the switch added NOT VALID, while the application writes. It fails with
	// [ErrBusy] as soon as another session waits for it.
	ValidateConstraint(ctx context.Context, o SchemaObject) error

	// Apply brings the tables of a round to the snapshot's state and commits that together with the new
	// position (I3, I4).
	Apply(ctx context.Context, snapshot Snapshot, round Round) error

	// Analyze collects the planner's statistics of a table.
	Analyze(ctx context.Context, table *Table) error

	// Digest summarises the table's rows.
	Digest(ctx context.Context, table *Table) (Digest, error)
}

// Giver is a target's part in the way back: it is read, and writers are kept out of it, as of the source before.
type Giver interface {
	ChangeLog
	Fencer
	// Resync has a table that is set aside sent whole when it joins again: its log then says all there is to say about
	// it, and nothing else. One transaction, which notes that in the journal, too.
	Resync(ctx context.Context, table *Table) error

	// SurveySchema reads what there is in the target's schema now.
	SurveySchema(ctx context.Context) (*SchemaSurvey, error)

	// DefineObjects returns the statements that make objects of the target, by their keys.
	DefineObjects(ctx context.Context, objects []definition.Object) (map[string]string, error)

	// CaptureAdded captures a table that was made after the switch, or partitions that it was given since, and has the
	// rows sent that were there before. It fails with [ErrBusy] as Capture does.
	CaptureAdded(ctx context.Context, table *Table, leaves []Relation) error

	// ResendRewritten has the next round send whole those tables that were rewritten (ALTER TABLE … USING, VACUUM
	// FULL) since the switch or since this was last called: that fires no trigger, and may change values.
	ResendRewritten(ctx context.Context, tables []*Table) error
}

// Copier is a target's part in the copy.
type Copier interface {
	// CopyChunk claims a chunk that nobody is copying, hands it to read, and commits what read wrote
	// together with the chunk's "done" (I3). It returns nil, nil when there is no chunk to claim.
	CopyChunk(ctx context.Context, read ReadChunk) (*Chunk, error)

	// Plan records the first plan of these tables, at once. Those that have a plan are left as they are.
	Plan(ctx context.Context, plans []TablePlan) error

	// Restart empties a table whose chunks mean nothing any more, and replaces them by a new plan.
	// If the table has been planned anew since plan number after, it does nothing and returns false.
	Restart(ctx context.Context, table *Table, after int, chunks []Chunk) (bool, error)

	// Empty takes the rows and the plan away of a table that is set aside, so that it can be copied from scratch.
	Empty(ctx context.Context, table *Table) error
}

// Switcher is a target's part in a switch, and in going back.
type Switcher interface {
	// CompareLargeObjects compares the large objects with those that the source has, without transferring them.
	CompareLargeObjects(ctx context.Context, snapshot func(context.Context) (Snapshot, error)) (LargeObjectDiff, error)

	// SyncLargeObjects makes the large objects those that the source has, with the same OIDs. Interrupted and
	// repeated, it does what is left. What changes on the source meanwhile may be missed.
	SyncLargeObjects(ctx context.Context, snapshot func(context.Context) (Snapshot, error)) (LargeObjectDiff, error)

	// PrepareSwitch does what Switch needs and can be done while changes are still applied. Repeated, it
	// does what is left. Keys of rows that were written on the target since an earlier switch was reverted
	// are handed to touch.
	PrepareSwitch(ctx context.Context, tables []*Table, touch func(ctx context.Context, table *Table, keys io.Reader,
		all bool) error) error

	// ForgetWrites takes back what of PrepareSwitch costs the target something while no switch is under way: a
	// replication slot. It does nothing where there is none.
	ForgetWrites(ctx context.Context) error

	// Switch makes the target complete: sequences, what could not be created before, rows of users in tables of
	// extensions, capture of what is written from now on, and the phase switched. One transaction, after PrepareSwitch.
	Switch(ctx context.Context, final Final) error

	// Revert takes back what Switch did and sets the phase replicating, in one transaction that locks
	// out writers. Keys of rows that were written since the switch are first handed to touch, table by
	// table; if there are any and force is false, it fails with a [*RefusedError].
	Revert(ctx context.Context, tables []*Table, force bool, touch func(ctx context.Context, table *Table,
		keys io.Reader, all bool) error) error
}

// ReadChunk writes the chunk's rows in the COPY format of table.Format and returns their number.
type ReadChunk func(ctx context.Context, table *Table, chunk *Chunk, w io.Writer) (rows int64, err error)

// TablePlan is how a table is cut into chunks. The table is as it was looked at for that.
type TablePlan struct {
	Table  *Table
	Chunks []Chunk
}

// Round is what one round carries.
type Round struct {
	// Changes are the tables that changed, with the position since which.
	Changes []RoundChange
	// Joining are tables that are complete with this round and carried by all later ones.
	Joining []*Table
}

// RoundChange is a change and the position from which on it is carried: the zero position for a table that
// was not carried before.
type RoundChange struct {
	Change
	Since Position
}

// Final is what a switch commits.
type Final struct {
	Tables     []*Table
	Sequences  []Sequence
	Objects    []SchemaObject
	Extensions []ExtensionTable // whose rows are read from Snapshot
	Snapshot   Snapshot         // taken behind the fence
	Report     SwitchReport
}

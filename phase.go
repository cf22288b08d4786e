package migrator

import "slices"

// Phase is where a migration stands. The names are those of the /status interface.
type Phase string

// The phases, in the order in which a migration walks them.
const (
	PhaseWaiting           Phase = "waiting"            // nothing has begun
	PhaseStarting          Phase = "starting"           // preflight
	PhaseConfiguring       Phase = "configuring"        // schema is cloned, capture installed
	PhaseReadyToCopy       Phase = "ready_to_copy"      // every change on the source is captured
	PhaseCopying           Phase = "copying"            // initial copy
	PhaseRebuildingIndexes Phase = "rebuilding_indexes" // indexes, constraints, first round, statistics
	PhaseReplicating       Phase = "replicating"        // rounds; the target follows the source
	PhaseSwitched          Phase = "switched"           // the source is fenced, the target is complete
	PhaseCleaningUp        Phase = "cleaning_up"        // everything of ours is being removed
	PhaseCompleted         Phase = "completed"
	PhaseAborted           Phase = "aborted"
	PhaseError             Phase = "error" // a step failed in a way that needs a person
)

// transitions is the whole state machine: what may follow what. The journal refuses everything else.
// A phase in error can go back to the phase that failed, which is recorded with it.
var transitions = map[Phase][]Phase{
	PhaseWaiting:           {PhaseStarting},
	PhaseStarting:          {PhaseConfiguring, PhaseCleaningUp, PhaseError},
	PhaseConfiguring:       {PhaseReadyToCopy, PhaseCleaningUp, PhaseError},
	PhaseReadyToCopy:       {PhaseCopying, PhaseCleaningUp, PhaseError},
	PhaseCopying:           {PhaseRebuildingIndexes, PhaseCleaningUp, PhaseError},
	PhaseRebuildingIndexes: {PhaseReplicating, PhaseCopying, PhaseCleaningUp, PhaseError},
	PhaseReplicating:       {PhaseSwitched, PhaseCopying, PhaseCleaningUp, PhaseError},
	PhaseSwitched:          {PhaseReplicating, PhaseCleaningUp, PhaseError},
	PhaseCleaningUp:        {PhaseCompleted, PhaseAborted, PhaseError},
	PhaseError: {
		PhaseStarting, PhaseConfiguring, PhaseReadyToCopy, PhaseCopying, PhaseRebuildingIndexes,
		PhaseReplicating, PhaseSwitched, PhaseCleaningUp,
	},
}

// CanFollow tells whether the state machine allows to go from p to next.
func (p Phase) CanFollow(next Phase) bool { return slices.Contains(transitions[p], next) }

// RunState refines a phase.
type RunState string

// The run states.
const (
	StateRunning RunState = "running"
	StatePaused  RunState = "paused"
)

// TableState is how far one table has come.
type TableState string

// The states of a table, in order.
const (
	TablePending  TableState = "pending"
	TableCopying  TableState = "copying"
	TableIndexing TableState = "indexing"
	TableIndexed  TableState = "indexed" // complete but for what changed since capture
	TableLive     TableState = "live"    // carried by rounds

	TableSetAside TableState = "set_aside" // a row cannot be moved: it waits, and joins again by itself
)

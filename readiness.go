package migrator

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"
)

// BlockerCode names a kind of [Blocker], for programs.
type BlockerCode string

// The codes. Writers that privileges cannot stop (superusers, members of pg_write_all_data, other roles) are not
// among them: the fence is made of triggers, which stop everybody.
const (
	// BlockerPhase is hard: the copy is not finished, or the switch was made.
	BlockerPhase  BlockerCode = "wrong_phase"
	BlockerPaused BlockerCode = "paused" // hard
	// BlockerUnreachable is hard: it cannot be told whether anything is in the way.
	BlockerUnreachable     BlockerCode = "unreachable"
	BlockerTableIncomplete BlockerCode = "table_incomplete" // hard
	BlockerTableAside      BlockerCode = "table_set_aside"  // hard: a row of it cannot be moved
	// BlockerDrift is hard: tables of the source are not those that are migrated.
	BlockerDrift        BlockerCode = "schema_drift"
	BlockerVerification BlockerCode = "verification_failed" // hard: rows differed when they were compared last
	// BlockerObjectFailed is soft: an index, say, could not be created on the target.
	BlockerObjectFailed     BlockerCode = "object_failed"
	BlockerLag              BlockerCode = "lag"                  // soft: over [CutoverConfig].LagLimit
	BlockerLongTransactions BlockerCode = "long_transactions"    // soft: open for longer than [CutoverConfig].DrainTime
	BlockerNoVerification   BlockerCode = "verification_missing" // note
	BlockerWritersUnknown   BlockerCode = "writers_unknown"      // note: open transactions could not be looked for
	blockerLevelHard                    = "hard"
	blockerLevelSoft                    = "soft"
	blockerLevelNote                    = "note"
)

// Blocker is something to know before a switch.
type Blocker struct {
	Code BlockerCode `json:"code"`
	// Level is hard (the switch is refused), soft (a reason to wait) or note (no reason against it).
	Level string `json:"level"`
	// Waits is set for soft ones that a switch waits for itself, as far as its configuration says. It is refused for
	// the others, unless it is forced.
	Waits  bool   `json:"waits,omitempty"`
	Reason string `json:"reason"` // complete sentences, with what to do
}

// Blockers looks, now, for everything that is to be known before a switch. It changes nothing, and any process may
// call it.
func Blockers(ctx context.Context, src Source, dst Target, cfg CutoverConfig) ([]Blocker, error) {
	return blockersBy(ctx, src, dst, cfg, src.Catalog)
}

// blockersBy is Blockers with a catalog that may be some seconds old.
func blockersBy(ctx context.Context, src Source, dst Target, cfg CutoverConfig,
	catalog func(context.Context) (*Catalog, error)) ([]Blocker, error) {
	cfg = cfg.withDefaults()
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, err
	}
	list, tables, err := blockers(ctx, dst, state, catalog)
	if err != nil || state.Phase != PhaseReplicating {
		return list, err
	}
	note := func(code BlockerCode, level string, waits bool, format string, args ...any) {
		list = append(list, Blocker{code, level, waits, fmt.Sprintf(format, args...)})
	}
	if state.Run == StatePaused {
		note(BlockerPaused, blockerLevelHard, false, "The migration is paused: resume it first.")
	}
	if state.SyncedAt != nil && state.SyncedAge > cfg.LagLimit.Seconds() {
		note(BlockerLag, blockerLevelSoft, true, "The target is %.0f s behind (the limit is %s): a switch first "+
			"waits until it has caught up, for %s. Without a process that runs, it does not catch up before.",
			state.SyncedAge, cfg.LagLimit, cfg.CatchUp)
	}
	live := make([]*Table, len(tables))
	for i, t := range tables {
		live[i] = t.Table
	}
	switch writers, err := src.Writers(ctx, live, cfg.DrainTime); {
	case err != nil:
		note(BlockerWritersUnknown, blockerLevelNote, false, "Open transactions could not be looked for: %v.", err)
	case len(writers) > 0:
		note(BlockerLongTransactions, blockerLevelSoft, true, "Transactions have been writing for longer than a "+
			"switch may refuse writes (%s); it has to wait for them, or end them: %s.", cfg.DrainTime,
			abbreviate(writers))
	}
	if state.Verification == nil {
		note(BlockerNoVerification, blockerLevelNote, false, "Rows were not compared yet: verify does that while "+
			"the application writes.")
	}
	return list, nil
}

// Readiness tells for what a switch would be refused now. Reasons in hard cannot be overridden, those in soft by force.
func Readiness(ctx context.Context, src Source, dst Target) (hard, soft []string, err error) {
	state, err := dst.Journal().State(ctx)
	if err != nil {
		return nil, nil, err
	}
	list, _, err := blockers(ctx, dst, state, src.Catalog)
	for _, b := range list {
		if b.Level == blockerLevelHard {
			hard = append(hard, b.Reason)
		} else {
			soft = append(soft, b.Reason)
		}
	}
	return hard, soft, err
}

// blockers lists those that a switch is refused for.
func blockers(ctx context.Context, dst Target, state *State, catalog func(context.Context) (*Catalog,
	error)) (list []Blocker, tables []TableStatus, err error) {
	hard := func(code BlockerCode, format string, args ...any) {
		list = append(list, Blocker{Code: code, Level: blockerLevelHard, Reason: fmt.Sprintf(format, args...)})
	}
	if state.Phase != PhaseReplicating {
		hard(BlockerPhase, "The migration is in phase %s: the switch comes after the copy, in phase replicating.",
			state.Phase)
		return list, nil, nil
	}
	if tables, err = dst.Journal().Tables(ctx); err != nil {
		return nil, nil, err
	}
	asides, err := dst.Journal().asides(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, a := range asides {
		if a.state == TableSetAside {
			a.Value = ""
			hard(BlockerTableAside, "Table %s.", strings.TrimSuffix(a.String(), "."))
		}
	}
	for _, t := range tables {
		if t.State != TableLive && t.State != TableSetAside {
			hard(BlockerTableIncomplete, "Table %s is not complete yet (%s).", t.Table, t.State)
		}
	}
	if v := state.Verification; v != nil && len(v.Differences) > 0 {
		hard(BlockerVerification, "The last verification found differences: %s. Verify with force, which has these "+
			"tables sent whole, and once more.", abbreviate(v.Differences))
	}
	cat, err := catalog(ctx)
	if err != nil {
		return nil, nil, err
	}
	for _, reason := range findDrift(cat, tables) {
		hard(BlockerDrift, "%s", reason)
	}
	objects, err := dst.Journal().Objects(ctx)
	if err != nil {
		return nil, nil, err
	}
	var failed []string
	for _, o := range objects {
		if o.State == ObjectFailed {
			failed = append(failed, o.String())
		}
	}
	if len(failed) > 0 {
		list = append(list, Blocker{Code: BlockerObjectFailed, Level: blockerLevelSoft, Reason: fmt.Sprintf(
			"These could not be created on the target: %s. Remove the cause and try again, or go on without them.",
			abbreviate(failed))})
	}
	return list, tables, nil
}

// addReadiness is about a migration in phase replicating.
func (st *Status) addReadiness(ctx context.Context, m *Migrator, s *State) {
	r := &st.CutoverReadiness
	list, err := blockersBy(ctx, m.cfg.Source, m.cfg.Target, m.cfg.Cutover, m.recent.catalog(m.cfg.Source, s.Schema))
	if err != nil {
		list = append(list, Blocker{Code: BlockerUnreachable, Level: blockerLevelHard,
			Reason: fmt.Sprintf("The source cannot be read: %v.", err)})
	}
	r.Blockers = append(r.Blockers, list...)
	for _, b := range list {
		switch b.Level {
		case blockerLevelHard:
			r.HardBlockers = append(r.HardBlockers, b.Reason)
		case blockerLevelSoft:
			r.SoftBlockers = append(r.SoftBlockers, b.Reason)
		default:
			r.Notes = append(r.Notes, b.Reason)
		}
	}
	switch {
	case len(r.HardBlockers) > 0:
		r.Level = "blocked"
	case len(r.SoftBlockers) > 0:
		r.Level, r.CanForce = "warning", true
	default:
		r.Level, r.CanForce = "ready", true
	}
}

// recentCatalog spares a source with thousands of tables, whose catalog takes long to read, of whoever asks for the
// status all the time.
type recentCatalog struct {
	mu   sync.Mutex
	cat  *Catalog
	read time.Time
	took time.Duration
}

// catalog returns the catalog, or what it was lately: reading it takes two hundredths of the time at most. One with
// another schema than the one that the journal knows is not good for that: what it differs in may have been followed
// since.
func (r *recentCatalog) catalog(src Source, schema string) func(context.Context) (*Catalog, error) {
	return func(ctx context.Context) (*Catalog, error) {
		r.mu.Lock()
		cat, good := r.cat, r.cat != nil && r.cat.Fingerprint == schema && time.Since(r.read) < 50*r.took
		r.mu.Unlock()
		if good {
			return cat, nil
		}
		began := time.Now()
		cat, err := src.Catalog(ctx)
		if err == nil {
			r.mu.Lock()
			r.cat, r.read, r.took = cat, time.Now(), time.Since(began)
			r.mu.Unlock()
		}
		return cat, err
	}
}

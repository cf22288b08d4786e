package migrator

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Status is where a migration stands: the /status object, in the names that scripts know.
type Status struct {
	Phase       Phase    `json:"phase"`
	State       RunState `json:"state"`
	StartedAt   *string  `json:"started_at"`
	SwitchedAt  *string  `json:"switched_at"`
	CompletedAt *string  `json:"completed_at"`
	Error       *string  `json:"error"`
	Message     string   `json:"message"`

	// ID is the migration's. FailedPhase is set in phase error: what failed and is tried again. Goal is set while
	// cleaning up: completed or aborted.
	ID          string `json:"migration_id,omitempty"`
	FailedPhase Phase  `json:"failed_phase,omitempty"`
	Goal        Phase  `json:"goal,omitempty"`

	CutoverReadiness ReadinessStatus `json:"cutover_readiness"`
	ProgressSignals  ProgressSignals `json:"progress_signals"`

	// LagSeconds is the age of the oldest change that the target may not have yet; null before the first round.
	LagSeconds *float64      `json:"lag_seconds"`
	Leader     string        `json:"leader,omitempty"`
	Report     *SwitchReport `json:"switch_report,omitempty"`
	// Log is the change log on the source.
	Log *LogStatus `json:"change_log,omitempty"`
	// Waiting is set while something that failed is tried again.
	Waiting *WaitingStatus `json:"waiting,omitempty"`
	// RevertReport is what the last revert did.
	RevertReport *SwitchReport `json:"revert_report,omitempty"`
	// WayBack is set while the migration is switched.
	WayBack *WayBackStatus `json:"way_back,omitempty"`
	// Verification is what the last comparison of all rows found.
	Verification *Verification `json:"verification,omitempty"`
	// SetAside are tables that wait because a row cannot be moved, without the values: see [Migrator.AsideTables].
	SetAside []AsideTable `json:"set_aside,omitempty"`
	// Hooks are the calls of the caller's hook.
	Hooks  []HookStatus   `json:"hooks,omitempty"`
	Tables []TableSummary `json:"tables"`
	// Workers are the chunks that are being copied now, in this process and others.
	Workers []WorkerStatus `json:"workers,omitempty"`
	// Builds are the indexes and constraints that are being built now.
	Builds []BuildStatus `json:"builds,omitempty"`
	// Throttle is set while the copy gives way to the application.
	Throttle *ThrottleStatus `json:"throttle,omitempty"`
	// SourceLoad is how busy the source is now, with other work than ours. It is left out if the source does not answer
	// at once.
	SourceLoad *LoadStatus `json:"source_load,omitempty"`
	// Objects counts the schema's objects by the stage in which they are created.
	Objects map[Stage]ObjectCounts `json:"objects,omitempty"`
	// Failed are objects that could not be created on the target; another run tries them again.
	Failed []FailedObject `json:"failed_objects,omitempty"`
	// Skipped are objects of the schema that could not be created on the target, or were left out by name, each with
	// the reason.
	Skipped []string `json:"skipped_objects,omitempty"`
	// NotValid are constraints that were validated on the source and are NOT VALID on the target, as rows do not
	// satisfy them there.
	NotValid []string `json:"not_valid_constraints,omitempty"`
}

// WaitingStatus is what keeps the migration from going on, for now.
type WaitingStatus struct {
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
}

// WayBackStatus is how what is written on the target comes back to the source.
type WayBackStatus struct {
	Enabled bool `json:"enabled"`
	// LagSeconds is how old the oldest change is that the source may not have; null before the first round.
	LagSeconds *float64 `json:"lag_seconds"`
	Rounds     int64    `json:"rounds"`
	Rows       int64    `json:"rows"`
	// Error is why it waits; what is written meanwhile is in the target's log.
	Error string `json:"error,omitempty"`
	// Held are the tables whose rows do not come back; those of all others do.
	Held []HeldTable `json:"held_tables,omitempty"`
}

// ReadinessStatus tells whether the switch can be made.
type ReadinessStatus struct {
	Level        string   `json:"level"` // not_ready, blocked, warning, ready
	CanForce     bool     `json:"can_force"`
	HardBlockers []string `json:"hard_blockers"`
	SoftBlockers []string `json:"soft_blockers"`
	// Notes are no reasons against a switch.
	Notes []string `json:"notes"`
	// Blockers are all of these, with a code.
	Blockers []Blocker `json:"blockers"`
}

// ProgressSignals are figures of progress.
type ProgressSignals struct {
	TablePhase       map[TableState]int `json:"table_phase"`
	ByteWeighted     ByteWeighted       `json:"byte_weighted"`
	ReplicationDelay ReplicationDelay   `json:"replication_delay"`
	ThroughputETA    ThroughputETA      `json:"throughput_eta"`
	EventChecklist   map[string]bool    `json:"event_checklist"`
	StallDetection   StallDetection     `json:"stall_detection"`
}

// ByteWeighted is the copy's progress in bytes on disk.
type ByteWeighted struct {
	CopiedBytes   int64   `json:"copied_bytes"`    // committed on the target
	InFlightBytes int64   `json:"in_flight_bytes"` // on their way, about
	TotalBytes    int64   `json:"total_bytes"`
	Percent       float64 `json:"percent"`
}

// ReplicationDelay is how far the target is behind.
type ReplicationDelay struct {
	// Seconds is the age of the oldest change that is not on the target: 0 if the last look, half a second ago at most,
	// found none.
	Seconds     *float64 `json:"seconds"`
	Rounds      int64    `json:"rounds"`
	RowsApplied int64    `json:"rows_applied"`
	// RowsWaiting were found on the source and are being applied.
	RowsWaiting int64 `json:"rows_waiting"`
	// RowsPerSecondIn are changed on the source, over the last seconds; RowsPerSecondOut is how fast the target applied
	// them.
	RowsPerSecondIn  float64 `json:"rows_per_second_in"`
	RowsPerSecondOut float64 `json:"rows_per_second_out"`
	Trend            Trend   `json:"trend"`
	// CatchUpSeconds is how long it takes until nothing waits; null if that cannot be said.
	CatchUpSeconds *float64 `json:"catch_up_seconds"`
}

// ThroughputETA is the copy's speed, in bytes on disk, and what is left of it.
type ThroughputETA struct {
	BytesPerSecond        float64  `json:"bytes_per_second"`         // over the last 20 seconds
	AverageBytesPerSecond float64  `json:"average_bytes_per_second"` // while anything was copied: pauses do not count
	ETASeconds            *float64 `json:"eta_seconds"`              // null when nothing is moving
}

// StallDetection tells whether something should move and does not.
type StallDetection struct {
	Stalled bool   `json:"stalled"`
	Reason  string `json:"reason,omitempty"`
}

// TableSummary is the progress of one table.
type TableSummary struct {
	Schema      string     `json:"schema"`
	Name        string     `json:"name"`
	State       TableState `json:"state"`
	RowsCopied  int64      `json:"rows_copied"`
	BytesCopied int64      `json:"bytes_copied"` // on disk
	BytesTotal  int64      `json:"bytes_total"`
	Format      string     `json:"format"` // of COPY: binary or text

	// While the table is copied: what is on its way in chunks that are not committed, and the speed.
	RowsInFlight          int64    `json:"rows_in_flight,omitempty"`
	BytesInFlight         int64    `json:"bytes_in_flight,omitempty"`
	BytesPerSecond        float64  `json:"bytes_per_second,omitempty"`
	AverageBytesPerSecond float64  `json:"average_bytes_per_second,omitempty"`
	ETASeconds            *float64 `json:"eta_seconds,omitempty"`
}

// Status reads where the migration stands. It changes nothing, and works in any process. Without a
// migration, the phase is waiting.
func (m *Migrator) Status(ctx context.Context) (*Status, error) {
	st := &Status{
		Phase: PhaseWaiting, State: StateRunning, Message: "no migration is recorded in the target database",
		Tables: []TableSummary{},
		CutoverReadiness: ReadinessStatus{Level: "not_ready", HardBlockers: []string{}, SoftBlockers: []string{},
			Notes: []string{}, Blockers: []Blocker{}},
		ProgressSignals: ProgressSignals{TablePhase: map[TableState]int{}, EventChecklist: map[string]bool{}},
	}
	s, err := m.journal.State(ctx)
	if errors.Is(err, ErrNoMigration) {
		return st, nil
	}
	if err != nil {
		return nil, err
	}
	tables, err := m.journal.Tables(ctx)
	if err != nil {
		return nil, err
	}
	objects, err := m.journal.Objects(ctx)
	if err != nil {
		return nil, err
	}
	st.Phase, st.State, st.Message, st.Leader, st.Report = s.Phase, s.Run, s.Message, s.Holder, s.Report
	st.StartedAt, st.SwitchedAt, st.CompletedAt = timeText(&s.StartedAt), timeText(s.SwitchedAt),
		timeText(s.CompletedAt)
	st.ID, st.Goal = s.ID, s.Goal
	if s.Phase == PhaseError {
		st.FailedPhase = s.Resume
	}
	if s.Error != "" {
		st.Error = &s.Error
	}
	st.RevertReport, st.Verification = s.RevertReport, s.Verification
	if st.Hooks, err = m.journal.Hooks(ctx); err != nil {
		return nil, err
	}
	if st.SetAside, err = m.AsideTables(ctx, false); err != nil {
		return nil, err
	}
	if s.Phase == PhaseSwitched {
		st.WayBack = &WayBackStatus{Enabled: !m.cfg.WayBack.Disabled, Rounds: s.BackRounds, Rows: s.BackRows,
			Error: s.BackError}
		if s.BackAt != nil {
			st.WayBack.LagSeconds = &s.BackAge
		}
		if st.WayBack.Held, err = m.journal.Held(ctx); err != nil {
			return nil, err
		}
	}
	st.addObjects(objects)
	p := &copyProgress{tables: map[uint32]*copyRate{}}
	if s.Phase == PhaseCopying || s.Phase == PhaseRebuildingIndexes {
		if p, err = m.journal.copyProgress(ctx, tables); err != nil {
			return nil, err
		}
	}
	st.Workers, st.Builds = p.workers, p.builds
	if s.Phase == PhaseCopying && s.Run == StateRunning {
		st.Throttle = p.throttle
	}
	switch s.Phase { //nolint:exhaustive // in all others it is left alone
	case PhaseCopying, PhaseRebuildingIndexes, PhaseReplicating:
		st.addLoad(ctx, m.cfg.Source)
	}
	st.addProgress(s, tables, p)
	if s.Phase != PhaseStarting {
		st.addLog(s, tables)
	}
	if s.WaitsFor != "" && s.WaitsSince != nil {
		st.Waiting = &WaitingStatus{Since: *s.WaitsSince, Reason: s.WaitsFor}
	}
	if w := m.waiting.Load(); w != nil {
		st.Waiting = w
	}
	if s.Phase == PhaseReplicating {
		st.addReadiness(ctx, m, s)
	}
	return st, nil
}

// LoadStatus is [Load], for programs.
type LoadStatus struct {
	ActiveSessions     int     `json:"active_sessions"`
	LatencySeconds     float64 `json:"latency_seconds"`
	FollowerLagSeconds float64 `json:"follower_lag_seconds"`
}

func (st *Status) addLoad(ctx context.Context, src Source) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	if l, err := src.Load(ctx); err == nil {
		st.SourceLoad = &LoadStatus{l.ActiveSessions, l.Latency.Seconds(), l.ReplicaLag.Seconds()}
	}
}

func (st *Status) addObjects(objects []SchemaObject) {
	st.Objects = map[Stage]ObjectCounts{}
	for _, o := range objects {
		n := st.Objects[o.Stage]
		n.Total++
		switch o.State {
		case ObjectDone:
			n.Done++
		case ObjectFailed:
			n.Failed++
			st.Failed = append(st.Failed, FailedObject{Object: o.String(), Error: o.Error})
		case ObjectLeftOut:
			if !o.belongs() {
				st.Skipped = append(st.Skipped, fmt.Sprintf("%s: %s", o, o.Error))
			}
		case ObjectSkipped:
			if o.Stage == StageValidate {
				st.NotValid = append(st.NotValid, fmt.Sprintf("%s: %s", o.owned(), o.Error))
				break
			}
			st.Skipped = append(st.Skipped, fmt.Sprintf("%s: %s", o, o.Error))
		case ObjectPending:
		}
		st.Objects[o.Stage] = n
	}
}

// idleFor is how long it is believed that nothing waits, since nothing did: the journal is told every second.
const idleFor = 3

// addLog tells how large the change log is. What it may grow to, nobody knows; a tenth of the database, or a gigabyte
// beside a small one, is a reason to look.
func (st *Status) addLog(s *State, tables []TableStatus) {
	st.Log = &LogStatus{Bytes: s.LogBytes, AgeSeconds: s.LogAge}
	var total int64
	for _, t := range tables {
		total += t.BytesTotal
	}
	const gigabyte = 1 << 30
	if s.LogBytes > max(gigabyte, total/10) {
		here, there, otherwise := "source", "target", "abort"
		if s.Phase == PhaseSwitched {
			here, there, otherwise = "target", "source", "complete the migration"
		}
		st.Log.Warning = fmt.Sprintf("The change log on the %s has grown to %.1f GB. It shrinks as soon as the %s "+
			"has caught up; if the %[1]s runs out of disk before, make room, or %[4]s.",
			here, float64(s.LogBytes)/gigabyte, there, otherwise)
	}
}

func (st *Status) addProgress(s *State, tables []TableStatus, copying *copyProgress) {
	p := &st.ProgressSignals
	for _, t := range tables {
		summary := TableSummary{
			Schema: t.Table.Schema, Name: t.Table.Name, State: t.State,
			RowsCopied: t.RowsCopied, BytesCopied: t.BytesCopied, BytesTotal: t.BytesTotal, Format: t.Table.Format(),
		}
		if r, ok := copying.tables[t.Table.ID]; ok {
			summary.RowsInFlight, summary.BytesInFlight, summary.BytesPerSecond = r.rows, r.inFlight, r.now
			summary.AverageBytesPerSecond, summary.ETASeconds = r.average(t.BytesCopied), r.left(t.BytesCopied,
				t.BytesTotal)
		}
		st.Tables = append(st.Tables, summary)
		p.TablePhase[t.State]++
		p.ByteWeighted.CopiedBytes += t.BytesCopied
		p.ByteWeighted.TotalBytes += t.BytesTotal
	}
	if p.ByteWeighted.TotalBytes > 0 {
		p.ByteWeighted.Percent = float64(p.ByteWeighted.CopiedBytes) / float64(p.ByteWeighted.TotalBytes) * 100
	}
	d := &p.ReplicationDelay
	d.Rounds, d.RowsApplied, d.RowsWaiting, d.Trend = s.Rounds, s.RowsApplied, s.Lag.Waiting, s.Lag.Trend
	if s.Phase == PhaseReplicating {
		d.RowsPerSecondIn, d.RowsPerSecondOut, d.CatchUpSeconds = s.Lag.In, s.Lag.Out, s.Lag.catchUp()
	}
	if s.SyncedAt != nil {
		lag := s.SyncedAge
		if s.Lag.Idle && lag < idleFor {
			lag = 0
		}
		if s.Phase == PhaseSwitched || s.Phase == PhaseCleaningUp {
			lag = 0
		}
		st.LagSeconds, p.ReplicationDelay.Seconds = &lag, &lag
	}
	const quiet = 60
	if s.Phase == PhaseReplicating && s.Run == StateRunning && s.SyncedAt != nil && s.SyncedAge > quiet {
		p.StallDetection = StallDetection{true, fmt.Sprintf("no round was finished for %.0f seconds: is a process "+
			"running?", s.SyncedAge)}
	}
	if s.Phase == PhaseCopying {
		p.ByteWeighted.InFlightBytes = copying.all.inFlight
		p.ThroughputETA.AverageBytesPerSecond = copying.all.average(p.ByteWeighted.CopiedBytes)
		if s.Run == StateRunning {
			p.ThroughputETA.BytesPerSecond = copying.all.now
			p.ThroughputETA.ETASeconds = copying.all.left(p.ByteWeighted.CopiedBytes, p.ByteWeighted.TotalBytes)
		}
	}
	reached := map[Phase]int{
		PhaseStarting: 0, PhaseConfiguring: 1, PhaseReadyToCopy: 2, PhaseCopying: 3, PhaseRebuildingIndexes: 4,
		PhaseReplicating: 5, PhaseSwitched: 6, PhaseCleaningUp: 7,
	}
	phase := s.Phase
	if phase == PhaseError {
		phase = s.Resume
	}
	n := reached[phase]
	p.EventChecklist = map[string]bool{
		"preflight": n > 0, "schema_cloned": n > 1, "changes_captured": n > 1, "copied": n > 3, "indexes_built": n > 4,
		"in_sync": n > 5 || (n == 5 && s.SyncedAt != nil), "switched": n > 5,
	}
}

func timeText(t *time.Time) *string {
	if t == nil {
		return nil
	}
	text := t.UTC().Format(time.RFC3339Nano)
	return &text
}

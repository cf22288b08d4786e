package dashboard

import (
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/heroku-migrator/migrator"
)

// metrics are what /metrics shows. The figures of the migration are those of the last status: a scrape asks no database.
type metrics struct {
	registry *prometheus.Registry
	events   *prometheus.CounterVec
	commands *prometheus.CounterVec
	notices  *prometheus.CounterVec
	took     prometheus.Gauge
}

func newMetrics(d *Dashboard) *metrics {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: "heroku_migrator_" + name, Help: help}, labels)
	}
	m := &metrics{
		registry: prometheus.NewRegistry(),
		events:   counter("events_total", "Events of this process.", "kind"),
		commands: counter("commands_total", "Commands through this dashboard.", "command", "result"),
		notices:  counter("notifications_total", "Notifications.", "result"),
		took:     prometheus.NewGauge(prometheus.GaugeOpts{Name: "heroku_migrator_status_seconds", Help: "How long reading the state took the last time."}),
	}
	streams := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "heroku_migrator_streams", Help: "Event streams that are open."},
		func() float64 { return float64(len(d.streams)) })
	m.registry.MustRegister(m.events, m.commands, m.notices, m.took, streams, &figures{d: d},
		collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

// figures collects those of the migration.
type figures struct{ d *Dashboard }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("heroku_migrator_"+name, help, labels, nil)
}

var (
	descUp          = desc("up", "1 if the migration's state could be read the last time.")
	descPhase       = desc("phase", "1 for the phase in which the migration is.", "phase")
	descPaused      = desc("paused", "1 if the migration is paused.")
	descWaiting     = desc("waiting", "1 while something that failed is tried again.")
	descStalled     = desc("stalled", "1 if something should move and does not.")
	descTables      = desc("tables", "Tables by state.", "state")
	descObjects     = desc("objects", "Objects of the schema by stage.", "stage", "state")
	descCopyTotal   = desc("copy_bytes_total", "Bytes on disk that the copy is about.")
	descCopyDone    = desc("copy_bytes_done", "Bytes on disk that were copied.")
	descCopyFlight  = desc("copy_bytes_in_flight", "Bytes on disk that are on their way.")
	descCopyRate    = desc("copy_bytes_per_second", "Speed of the copy over the last 20 seconds.")
	descCopyETA     = desc("copy_eta_seconds", "What is left of the copy.")
	descWorkers     = desc("copy_workers", "Chunks that are being copied now.")
	descThrottle    = desc("copy_speed_ratio", "1, or less while the copy gives way to the application.")
	descBuilds      = desc("index_builds", "Indexes and constraints that are being built now.")
	descLag         = desc("lag_seconds", "Age of the oldest change that is not on the target.")
	descRounds      = desc("rounds_total", "Rounds applied.")
	descApplied     = desc("rows_applied_total", "Rows that rounds applied.")
	descRowsWaiting = desc("rows_waiting", "Rows that were found on the source and are being applied.")
	descRowRate     = desc("rows_per_second", "Rows changed on the source, and applied by the target.", "direction")
	descSessions    = desc("source_active_sessions", "Sessions of others than us that are at work on the source.")
	descLatency     = desc("source_latency_seconds", "How long a small query on the source took, the network counted.")
	descLog         = desc("change_log_bytes", "Size of the change log on the source.")
	descBackLag     = desc("way_back_lag_seconds", "Age of the oldest change on the target that is not on the source, after the switch.")
	descBackRows    = desc("way_back_rows_total", "Rows that came back to the source after the switch.")
	descWithout     = desc("without_writes_seconds", "How long nobody could write, in the last switch and the last revert.", "command")
	descDiffer      = desc("verification_differences", "Tables that differed when rows were compared last.")
	descVerified    = desc("verification_timestamp_seconds", "When rows were compared last.")
	descFindings    = desc("preflight_findings", "What the last preflight found.", "severity")

	allPhases = []migrator.Phase{
		migrator.PhaseWaiting, migrator.PhaseStarting, migrator.PhaseConfiguring, migrator.PhaseReadyToCopy, migrator.PhaseCopying,
		migrator.PhaseRebuildingIndexes, migrator.PhaseReplicating, migrator.PhaseSwitched, migrator.PhaseCleaningUp, migrator.PhaseCompleted,
		migrator.PhaseAborted, migrator.PhaseError,
	}
)

// Describe implements [prometheus.Collector]: it describes nothing, as which figures there are depends on the state.
func (f *figures) Describe(chan<- *prometheus.Desc) {}

// Collect implements [prometheus.Collector].
func (f *figures) Collect(ch chan<- prometheus.Metric) {
	f.d.mu.Lock()
	v := f.d.view
	f.d.mu.Unlock()
	put := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, kind, value, labels...)
	}
	gauge := func(d *prometheus.Desc, value float64, labels ...string) {
		put(d, prometheus.GaugeValue, value, labels...)
	}
	if v == nil {
		gauge(descUp, 0)
		return
	}
	st := &v.status
	gauge(descUp, truth(st.Unreachable == nil))
	for _, p := range allPhases {
		gauge(descPhase, truth(p == st.Phase), string(p))
	}
	gauge(descPaused, truth(st.State == migrator.StatePaused))
	gauge(descWaiting, truth(st.Waiting != nil))
	p := &st.ProgressSignals
	gauge(descStalled, truth(p.StallDetection.Stalled))
	for state, n := range p.TablePhase {
		gauge(descTables, float64(n), string(state))
	}
	for stage, n := range st.Objects {
		gauge(descObjects, float64(n.Done), string(stage), "done")
		gauge(descObjects, float64(n.Failed), string(stage), "failed")
		gauge(descObjects, float64(n.Total), string(stage), "total")
	}
	gauge(descCopyTotal, float64(p.ByteWeighted.TotalBytes))
	gauge(descCopyDone, float64(p.ByteWeighted.CopiedBytes))
	gauge(descCopyFlight, float64(p.ByteWeighted.InFlightBytes))
	gauge(descCopyRate, p.ThroughputETA.BytesPerSecond)
	optional(gauge, descCopyETA, p.ThroughputETA.ETASeconds)
	gauge(descWorkers, float64(len(st.Workers)))
	share := 1.0
	if st.Throttle != nil {
		share = st.Throttle.Percent / 100
	}
	gauge(descThrottle, share)
	gauge(descBuilds, float64(len(st.Builds)))
	optional(gauge, descLag, st.LagSeconds)
	put(descRounds, prometheus.CounterValue, float64(p.ReplicationDelay.Rounds))
	put(descApplied, prometheus.CounterValue, float64(p.ReplicationDelay.RowsApplied))
	gauge(descRowsWaiting, float64(p.ReplicationDelay.RowsWaiting))
	gauge(descRowRate, p.ReplicationDelay.RowsPerSecondIn, "in")
	gauge(descRowRate, p.ReplicationDelay.RowsPerSecondOut, "out")
	if st.SourceLoad != nil {
		gauge(descSessions, float64(st.SourceLoad.ActiveSessions))
		gauge(descLatency, st.SourceLoad.LatencySeconds)
	}
	if st.Log != nil {
		gauge(descLog, float64(st.Log.Bytes))
	}
	if st.WayBack != nil {
		optional(gauge, descBackLag, st.WayBack.LagSeconds)
		put(descBackRows, prometheus.CounterValue, float64(st.WayBack.Rows))
	}
	if st.Report != nil {
		gauge(descWithout, st.Report.WithoutWrites.Seconds(), "switch")
	}
	if st.RevertReport != nil {
		gauge(descWithout, st.RevertReport.WithoutWrites.Seconds(), "revert")
	}
	if st.Verification != nil {
		gauge(descDiffer, float64(len(st.Verification.Differences)))
		gauge(descVerified, float64(st.Verification.At.Unix()))
	}
	if checks := f.d.checks.latest(); checks != nil {
		found := map[migrator.Severity]int{migrator.SeverityOK: 0, migrator.SeverityInfo: 0, migrator.SeverityWarning: 0, migrator.SeverityBlocker: 0}
		for _, finding := range checks.Findings {
			found[finding.Severity]++
		}
		for severity, n := range found {
			gauge(descFindings, float64(n), string(severity))
		}
	}
}

func optional(gauge func(*prometheus.Desc, float64, ...string), d *prometheus.Desc, value *float64) {
	if value != nil {
		gauge(d, *value)
	}
}

func truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

package dashboard

import (
	"net/http"
	"runtime"
	"runtime/debug"
	"time"
)

// diagnostics is all that the dashboard knows, for whoever is asked for help.
type diagnostics struct {
	GeneratedAt time.Time         `json:"generated_at"`
	Versions    map[string]string `json:"versions"`
	Process     map[string]any    `json:"process"`
	Settings    map[string]string `json:"settings"`
	Config      map[string]any    `json:"dashboard"`
	Status      Status            `json:"status"`
	Commands    map[string]Permit `json:"commands"`
	Preflight   *Checks           `json:"preflight"` // the last; null if there was none
	Report      *Report           `json:"report"`
	Activity    []Activity        `json:"activity"`
	Log         []string          `json:"log"`
}

func (d *Dashboard) serveDiagnostics(w http.ResponseWriter, r *http.Request) {
	v := d.current(r.Context())
	report, _ := d.Report()
	var memory runtime.MemStats
	runtime.ReadMemStats(&memory)
	happened, _ := d.feed.after(0, activities)
	out := diagnostics{
		GeneratedAt: time.Now().UTC(),
		Versions:    versions(d.cfg.Version),
		Process: map[string]any{
			"goroutines": runtime.NumGoroutine(), "heap_bytes": memory.HeapAlloc, "system_bytes": memory.Sys, "cpus": runtime.NumCPU(),
			"streams": len(d.streams),
		},
		Settings: d.cfg.Settings,
		Config: map[string]any{
			"authentication": d.auth.kind(), "read_only": d.cfg.ReadOnly, "host_runs": d.cfg.HostRuns, "notifications": d.cfg.Notifier != nil,
			"max_streams": d.cfg.MaxStreams,
		},
		Status: v.status, Commands: v.commands, Preflight: d.checks.latest(), Report: report,
		Activity: happened, Log: d.log.selectLogs(0, mostLines, -100, "").Logs,
	}
	d.attach(w, "migration-diagnostics.json", out)
}

func (a *authenticator) kind() string {
	switch {
	case a.cfg.Authorize != nil:
		return "by the host program"
	case a.cfg.Password != "":
		return "password"
	}
	return "none"
}

// versions are those of the program, the toolchain and the libraries that talk to databases.
func versions(program string) map[string]string {
	list := map[string]string{"program": program, "go": runtime.Version(), "platform": runtime.GOOS + "/" + runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return list
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" {
			list["revision"] = s.Value
		}
	}
	for _, m := range info.Deps {
		if m.Path == "github.com/jackc/pgx/v5" || m.Path == "github.com/heroku-migrator/migrator" {
			list[m.Path] = m.Version
		}
	}
	return list
}

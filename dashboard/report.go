package dashboard

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
	"strings"
	"time"

	"github.com/heroku-migrator/migrator"
)

// Report tells what a migration did: to keep, when nothing of it is left on either database.
type Report struct {
	GeneratedAt time.Time      `json:"generated_at"`
	Version     string         `json:"version"`
	MigrationID string         `json:"migration_id"`
	Outcome     migrator.Phase `json:"outcome"` // completed, aborted, or the phase while it is under way
	Message     string         `json:"message"`
	Source      Side           `json:"source"`
	Target      Side           `json:"target"`

	StartedAt   *string  `json:"started_at"`
	SwitchedAt  *string  `json:"switched_at"`
	CompletedAt *string  `json:"completed_at"`
	Seconds     *float64 `json:"seconds"` // from start to end, or until now

	Tables      int           `json:"tables"`
	RowsCopied  int64         `json:"rows_copied"`
	BytesCopied int64         `json:"bytes_copied"` // on the source's disk
	RowsApplied int64         `json:"rows_applied"` // by rounds, after the copy
	Rounds      int64         `json:"rounds"`
	TableList   []ReportTable `json:"table_list"`

	Switch *ReportSwitch `json:"switch"`
	Revert *ReportSwitch `json:"revert"`
	// RowsBack came back to the source after the last switch.
	RowsBack int64 `json:"rows_back"`

	Verification *migrator.Verification  `json:"verification"`
	Hooks        []migrator.HookStatus   `json:"hooks"`
	Failed       []migrator.FailedObject `json:"failed_objects"`
	Skipped      []string                `json:"skipped_objects"`
	NotValid     []string                `json:"not_valid_constraints"`
	// Trouble are the warnings and failures that this process saw.
	Trouble []Activity `json:"trouble"`
}

// ReportTable is one table's part.
type ReportTable struct {
	Schema      string              `json:"schema"`
	Name        string              `json:"name"`
	State       migrator.TableState `json:"state"`
	RowsCopied  int64               `json:"rows_copied"`
	BytesCopied int64               `json:"bytes_copied"`
}

// ReportSwitch is a switch or a revert, in milliseconds.
type ReportSwitch struct {
	At              time.Time `json:"at"`
	WithoutWritesMS float64   `json:"without_writes_ms"`
	FenceMS         float64   `json:"fence_ms"`
	DrainMS         float64   `json:"drain_ms"`
	HookMS          float64   `json:"hook_ms"`
	FinishMS        float64   `json:"finish_ms"`
	FenceAttempts   int       `json:"fence_attempts"`
	RowsDrained     int64     `json:"rows_drained"`
	Sequences       int       `json:"sequences"`
	LargeObjects    int64     `json:"large_objects"`
}

// Report returns the report as things stand, and false if nothing has begun.
func (d *Dashboard) Report() (*Report, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.view == nil || d.view.status.StartedAt == nil {
		return nil, false
	}
	return d.report(d.view.status), true
}

// report makes the report of a status.
func (d *Dashboard) report(st Status) *Report {
	r := &Report{
		GeneratedAt: time.Now().UTC(), Version: st.Version, MigrationID: st.ID, Outcome: st.Phase,
		Message: d.redact.text(st.Message),
		Source:  st.Databases.Source, Target: st.Databases.Target, StartedAt: st.StartedAt, SwitchedAt: st.SwitchedAt,
		CompletedAt: st.CompletedAt,
		Tables:      len(st.Tables), RowsApplied: st.ProgressSignals.ReplicationDelay.RowsApplied,
		Rounds: st.ProgressSignals.ReplicationDelay.Rounds,
		TableList: make([]ReportTable, 0,
			len(st.Tables)), Switch: reportSwitch(st.Report), Revert: reportSwitch(st.RevertReport),
		Verification: st.Verification, Hooks: append([]migrator.HookStatus{},
			st.Hooks...), Failed: append([]migrator.FailedObject{}, st.Failed...),
		Skipped: append([]string{}, st.Skipped...), NotValid: append([]string{}, st.NotValid...), Trouble: []Activity{},
	}
	if st.WayBack != nil {
		r.RowsBack = st.WayBack.Rows
	}
	if start, ok := parseTime(st.StartedAt); ok {
		end, over := parseTime(st.CompletedAt)
		if !over {
			end = time.Now()
		}
		seconds := end.Sub(start).Seconds()
		r.Seconds = &seconds
	}
	for _, t := range st.Tables {
		r.RowsCopied += t.RowsCopied
		r.BytesCopied += t.BytesCopied
		r.TableList = append(r.TableList, ReportTable{Schema: t.Schema, Name: t.Name, State: t.State,
			RowsCopied: t.RowsCopied, BytesCopied: t.BytesCopied})
	}
	happened, _ := d.feed.after(0, activities)
	for _, a := range happened {
		if a.Level != "info" {
			a.Message = d.redact.text(a.Message)
			r.Trouble = append(r.Trouble, a)
		}
	}
	return r
}

func reportSwitch(r *migrator.SwitchReport) *ReportSwitch {
	if r == nil {
		return nil
	}
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	return &ReportSwitch{
		At: r.At, WithoutWritesMS: ms(r.WithoutWrites), FenceMS: ms(r.Fence), DrainMS: ms(r.Drain),
		HookMS: ms(r.Hook), FinishMS: ms(r.Finish),
		FenceAttempts: r.FenceAttempts, RowsDrained: r.RowsDrained, Sequences: r.Sequences,
		LargeObjects: r.LargeObjects,
	}
}

func parseTime(text *string) (time.Time, bool) {
	if text == nil {
		return time.Time{}, false
	}
	t, err := time.Parse(time.RFC3339Nano, *text)
	return t, err == nil
}

//go:embed report.css
var reportStyle string

//go:embed report.html
var reportPage string

// reportPolicy lets the report's own style be applied, and nothing else.
func reportPolicy() string {
	sum := sha256.Sum256([]byte(reportStyle))
	return "default-src 'none'; style-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) +
		"'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
}

// HTML is the report as one page that needs nothing else: to be kept, or printed.
func (r *Report) HTML() ([]byte, error) {
	t, err := template.New("report").Funcs(template.FuncMap{
		"bytes": bytesText, "deref": dereference, "count": countText, "moment": momentText,
		"ms": func(v float64) string { return countText(int64(v)) + " ms" }, // as everywhere, not rounded up
		"plural": func(n any, noun string) string {
			if text := countText(n); text != "1" {
				return text + " " + noun + "s"
			}
			return "1 " + noun
		},
		"duration": func(s *float64) string {
			if s == nil {
				return "–"
			}
			return time.Duration(*s * float64(time.Second)).Round(time.Second).String()
		},
		"style": func() template.CSS { return template.CSS(reportStyle) }, //nolint:gosec // our own, embedded
	}).Parse(reportPage)
	if err != nil {
		return nil, fmt.Errorf("the report's page: %w", err)
	}
	var b bytes.Buffer
	if err := t.Execute(&b, r); err != nil {
		return nil, fmt.Errorf("the report's page: %w", err)
	}
	return b.Bytes(), nil
}

func dereference(s *string) string {
	if s == nil || *s == "" {
		return "–"
	}
	return *s
}

// countText is a whole number of any type, with separators.
func countText(n any) string {
	digits := fmt.Sprint(n)
	for i := len(digits) - 3; i > 0 && digits[i-1] != '-'; i -= 3 {
		digits = digits[:i] + "," + digits[i:]
	}
	return digits
}

func momentText(s *string) string {
	if t, ok := parseTime(s); ok {
		return t.UTC().Format("2006-01-02 15:04:05 UTC")
	}
	return dereference(s)
}

func bytesText(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	v, exp := float64(n)/unit, 0
	for v >= unit && exp < 4 {
		v /= unit
		exp++
	}
	return fmt.Sprintf("%.1f %ciB", v, "KMGTP"[exp])
}

// currentReport answers 404 if there is nothing to report.
func (d *Dashboard) currentReport(w http.ResponseWriter, r *http.Request) *Report {
	d.current(r.Context())
	report, ok := d.Report()
	if !ok {
		d.fail(w, &apiError{status: http.StatusNotFound, Code: "not_found",
			Text: "No migration has begun: there is nothing to report."})
		return nil
	}
	return report
}

func (d *Dashboard) serveReportJSON(w http.ResponseWriter, r *http.Request) {
	if report := d.currentReport(w, r); report != nil {
		d.attach(w, "migration-report.json", report)
	}
}

func (d *Dashboard) serveReportHTML(w http.ResponseWriter, r *http.Request) {
	report := d.currentReport(w, r)
	if report == nil {
		return
	}
	clean, err := d.redact.encode(report)
	if err == nil {
		report = new(Report)
		err = json.Unmarshal(clean, report)
	}
	var page []byte
	if err == nil {
		page, err = report.HTML()
	}
	if err != nil {
		d.say.Error("the report could not be made", "error", err)
		d.fail(w, &apiError{status: http.StatusInternalServerError, Code: "command_failed",
			Text: "The report could not be made: see the log."})
		return
	}
	h := w.Header()
	h.Set("Content-Type", "text/html; charset=utf-8")
	h.Set("Content-Security-Policy", reportPolicy())
	h.Set("Content-Disposition", `inline; filename="migration-report.html"`)
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(page) // if it fails, whoever asked is gone
}

// attach sends a file to keep, indented for people.
func (d *Dashboard) attach(w http.ResponseWriter, name string, v any) {
	b, err := d.redact.encode(v)
	var text bytes.Buffer
	if err == nil {
		err = json.Indent(&text, b, "", "  ")
	}
	if err != nil {
		d.say.Error("a file could not be made", "file", name, "error", err)
		d.fail(w, &apiError{status: http.StatusInternalServerError, Code: "command_failed",
			Text: "The file could not be made: see the log."})
		return
	}
	w.Header().Set("Content-Type", jsonType)
	w.Header().Set("Content-Disposition", fmt.Sprintf("attachment; filename=%q", strings.ReplaceAll(name, `"`, "")))
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(append(text.Bytes(), '\n')) // if it fails, whoever asked is gone
}

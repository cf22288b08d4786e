package herokutest

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
)

// answer carries a request out.
func (s *Server) answer(w http.ResponseWriter, r *http.Request) {
	if s.app.ReadOnly && r.Method != http.MethodGet {
		refuse(w, http.StatusForbidden, "forbidden", "You do not have access to the app "+s.app.Name+".")
		return
	}
	if id, ok := strings.CutPrefix(r.URL.Path, "/addon-attachments"); ok {
		if r.Method == http.MethodPost {
			s.attach(w, r)
		} else {
			s.detach(w, strings.TrimPrefix(id, "/"))
		}
		return
	}
	if addon, ok := strings.CutSuffix(strings.TrimPrefix(r.URL.Path, "/addons/"), "/addon-attachments"); ok && strings.HasPrefix(r.URL.Path, "/addons/") {
		s.ok(w, s.everywhere(addon))
		return
	}
	what, ok := strings.CutPrefix(r.URL.Path, "/apps/"+s.app.Name)
	if !ok {
		refuse(w, http.StatusNotFound, "not_found", "Couldn't find that app.")
		return
	}
	switch r.Method + what {
	case "GET":
		s.ok(w, s.info())
	case "PATCH":
		var change struct {
			Maintenance *bool `json:"maintenance"`
		}
		if json.NewDecoder(r.Body).Decode(&change) == nil && change.Maintenance != nil {
			s.maintenance = *change.Maintenance
			s.calls = append(s.calls, fmt.Sprintf("maintenance %t", s.maintenance))
		}
		s.ok(w, s.info())
	case "GET/config-vars":
		s.ok(w, s.config())
	case "PATCH/config-vars":
		s.patch(w, r)
	case "GET/addon-attachments":
		list := []any{}
		for _, a := range s.attachments {
			list = append(list, s.attachment(a))
		}
		s.ok(w, list)
	case "GET/releases":
		s.listReleases(w, r)
	case "GET/formation":
		list := []any{}
		for kind, n := range s.app.Formation {
			list = append(list, map[string]any{"type": kind, "quantity": n})
		}
		if s.app.Release != nil {
			list = append(list, map[string]any{"type": "release", "quantity": 0})
		}
		s.ok(w, list)
	case "GET/dynos":
		list := []any{}
		for _, d := range s.dynos() {
			list = append(list, map[string]any{"name": d.name, "type": d.kind, "state": d.state, "release": map[string]any{"version": d.release.Version}})
		}
		s.ok(w, list)
	default:
		refuse(w, http.StatusNotFound, "not_found", "The requested API endpoint was not found. Are you using the right HTTP verb (i.e. `GET` vs. `POST`), and did you specify your intended version with the `Accept` header?")
	}
}

func (s *Server) info() any { return map[string]any{"name": s.app.Name, "maintenance": s.maintenance} }

// ok answers with a value.
func (s *Server) ok(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	if err := json.NewEncoder(w).Encode(v); err != nil {
		panic(http.ErrAbortHandler) // who asked is gone
	}
}

// patch changes config vars: those of attachments cannot be, and nothing changes if one cannot. No change makes no release.
func (s *Server) patch(w http.ResponseWriter, r *http.Request) {
	var change map[string]*string
	if err := json.NewDecoder(r.Body).Decode(&change); err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", "Unable to parse JSON.")
		return
	}
	owned := map[string]bool{}
	for _, a := range s.attachments {
		owned[a.Name+"_URL"] = true
	}
	names := slices.Sorted(maps.Keys(change))
	if taken := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !owned[n] }); len(taken) > 0 {
		refuse(w, http.StatusUnprocessableEntity, "invalid_params", "Cannot overwrite attachment values "+strings.Join(taken, ", ")+".")
		return
	}
	before := s.base()
	vars := maps.Clone(before)
	var set, removed []string
	for _, name := range names {
		old, there := vars[name]
		switch value := change[name]; {
		case value == nil && there:
			delete(vars, name)
			removed = append(removed, name)
		case value != nil && (!there || old != *value):
			vars[name] = *value
			set = append(set, name)
		}
	}
	if !maps.Equal(before, vars) {
		description := ""
		if len(set) > 0 {
			description = "Set " + strings.Join(set, ", ")
		}
		if len(removed) > 0 {
			description = strings.TrimPrefix(description+", remove "+strings.Join(removed, ", "), ", ")
		}
		s.calls = append(s.calls, description)
		s.release(description+" config vars", vars)
	}
	s.ok(w, s.config())
}

func (s *Server) attachment(a Attachment) any {
	var namespace any
	if a.Namespace != "" {
		namespace = a.Namespace
	}
	return map[string]any{
		"id": a.ID, "name": a.Name, "namespace": namespace, "app": map[string]any{"name": s.app.Name},
		"addon": map[string]any{"id": "addon-" + a.Addon, "name": a.Addon, "app": map[string]any{"name": s.app.Name}},
	}
}

// everywhere lists an add-on's attachments, those to other applications too.
func (s *Server) everywhere(addon string) []any {
	list := []any{}
	for _, a := range s.attachments {
		if a.Addon == addon {
			list = append(list, s.attachment(a))
		}
	}
	for _, app := range s.shared[addon] {
		list = append(list, map[string]any{"name": "DATABASE", "app": map[string]any{"name": app}, "addon": map[string]any{"name": addon}})
	}
	return list
}

var attachmentName = regexp.MustCompile(`^[A-Z][A-Z0-9_]*$`)

func (s *Server) attach(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Addon     string `json:"addon"`
		App       string `json:"app"`
		Name      string `json:"name"`
		Namespace string `json:"namespace"`
		Confirm   string `json:"confirm"`
	}
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
		refuse(w, http.StatusBadRequest, "bad_request", "Unable to parse JSON.")
		return
	}
	vars := maps.Clone(s.base())
	_, plain := vars[in.Name+"_URL"]
	taken := plain || slices.ContainsFunc(s.attachments, func(a Attachment) bool { return a.Name == in.Name })
	switch _, there := s.addons[in.Addon]; {
	case in.App != s.app.Name:
		refuse(w, http.StatusNotFound, "not_found", "Couldn't find that app.")
	case !there:
		refuse(w, http.StatusNotFound, "not_found", "Couldn't find that add-on.")
	case !attachmentName.MatchString(in.Name):
		refuse(w, http.StatusUnprocessableEntity, "invalid_params", "Name must consist of upper-case letters, digits and underscores.")
	case taken && in.Confirm != s.app.Name:
		refuse(w, http.StatusLocked, "confirmation_required", "Attaching "+in.Addon+" would overwrite "+in.Name+"_URL. Please confirm.")
	default:
		s.ids++
		s.attachments = slices.DeleteFunc(s.attachments, func(a Attachment) bool { return a.Name == in.Name })
		a := Attachment{fmt.Sprint("id-", s.ids), in.Name, in.Addon, in.Namespace}
		s.attachments = append(s.attachments, a)
		s.calls = append(s.calls, "Attach "+in.Name)
		delete(vars, in.Name+"_URL")
		s.release("Attach "+in.Name+" (@ref:"+in.Addon+")", vars)
		w.WriteHeader(http.StatusCreated)
		s.ok(w, s.attachment(a))
	}
}

func (s *Server) detach(w http.ResponseWriter, id string) {
	i := slices.IndexFunc(s.attachments, func(a Attachment) bool { return a.ID == id })
	if i < 0 {
		refuse(w, http.StatusNotFound, "not_found", "Couldn't find that add-on attachment.")
		return
	}
	a := s.attachments[i]
	others := slices.DeleteFunc(slices.Clone(s.attachments), func(o Attachment) bool { return o.Addon != a.Addon || o.ID == a.ID })
	if len(others) == 0 {
		refuse(w, http.StatusUnprocessableEntity, "invalid_params", "Cannot destroy last attachment to billing app for resource "+a.Addon)
		return
	}
	s.attachments = slices.Delete(s.attachments, i, i+1)
	s.calls = append(s.calls, "Detach "+a.Name)
	s.release("Detach "+a.Name+" (@ref:"+a.Addon+")", s.base())
	s.ok(w, s.attachment(a))
}

// listReleases gives the latest ones first, as many as asked for: without a range they come from the oldest.
func (s *Server) listReleases(w http.ResponseWriter, r *http.Request) {
	releases := slices.Clone(s.releases)
	asked := r.Header.Get("Range")
	if strings.Contains(asked, "order=desc") {
		slices.Reverse(releases)
	}
	most := 200
	if _, after, found := strings.Cut(asked, "max="); found {
		_, _ = fmt.Sscanf(after, "%d", &most)
	}
	list := []any{}
	for _, rel := range releases[:min(most, len(releases))] {
		list = append(list, map[string]any{"version": rel.Version, "description": rel.Description, "status": s.status(rel), "created_at": rel.created})
	}
	w.WriteHeader(http.StatusPartialContent)
	s.ok(w, list)
}

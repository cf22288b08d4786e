package main

import (
	"net/http"
	"strings"
)

// locked is served while there is no password: whoever found the address could switch the databases. Only /health is answered, so that the
// platform leaves the app alone; everything else says what is missing, and nothing more.
func locked() http.Handler {
	const text = "PASSWORD is not set, so nothing is shown: anybody could switch the databases. Set it (on Heroku: heroku config:set PASSWORD=… -a this-app), " +
		"and log in as admin. DISABLE_AUTH=true lets everybody in who can reach the port."
	refusal, alive := `{"success":false,"code":"password_missing","error":"`+text+`"}`, `{"status":"ok"}`
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Cache-Control", "no-store")
		switch {
		case r.URL.Path == "/health" && (r.Method == http.MethodGet || r.Method == http.MethodHead):
			answerJSON(w, http.StatusOK, alive)
		case strings.Contains(r.Header.Get("Accept"), "text/html"):
			h.Set("Content-Type", "text/html; charset=utf-8")
			w.WriteHeader(http.StatusServiceUnavailable)
			_, _ = w.Write([]byte(`<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">` +
				"<title>Heroku migrator: no password</title><h1>Heroku migrator</h1><p>" + text + "</p></html>\n"))
		default:
			answerJSON(w, http.StatusServiceUnavailable, refusal)
		}
	})
}

func answerJSON(w http.ResponseWriter, status int, text string) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.WriteHeader(status)
	_, _ = w.Write([]byte(text + "\n")) // if it fails, whoever asked is gone
}

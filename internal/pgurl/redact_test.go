package pgurl_test

import (
	"encoding/json"
	"net/url"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/heroku-migrator/migrator/internal/pgurl"
)

func TestRedact(t *testing.T) {
	plain := parse(t, "postgres://u:hunter2@h/d")
	longer := parse(t, "postgres://u:hunter2and3@h/d")
	short := parse(t, "postgres://u:pw@h/d")
	none := parse(t, "postgres://u@h/d")
	tests := []struct {
		name, in, want string
		urls           []*pgurl.URL
	}{
		{"no URL", "hunter2", "hunter2", nil},
		{"nil", "hunter2", "hunter2", []*pgurl.URL{nil}},
		{"no password", "user u", "user u", []*pgurl.URL{none}},
		{"every occurrence", "hunter2 xhunter2x", "*** x***x", []*pgurl.URL{plain}},
		{"one password is the other's beginning", "hunter2and3 hunter2", "*** ***", []*pgurl.URL{plain, longer, plain}},
		{"short", "pw postgres://u:pw@h/d upward", "pw postgres://u:***@h/d upward", []*pgurl.URL{short}},
		{"empty text", "", "", []*pgurl.URL{plain}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			assert.Equal(t, tt.want, pgurl.Redact(tt.in, tt.urls...))
		})
	}
}

func TestRedactEveryNotation(t *testing.T) {
	const (
		typed    = "%61/b%20c+d'e\"f\\g<%26é%25~*$h"
		password = "a/b c+d'e\"f\\g<&é%~*$h"
	)
	u := parse(t, "postgres://u@h/d?password="+typed)
	cfg, err := u.ConnConfig()
	require.NoError(t, err)
	require.Equal(t, password, cfg.Password)

	inJSON, err := json.Marshal(password)
	require.NoError(t, err)
	_, inDSN, _ := strings.Cut(cfg.ConnString(), "password='")
	inDSN, _, _ = strings.Cut(inDSN, "' port=")
	for name, form := range map[string]string{
		"as it is":           password,
		"as typed":           typed,
		"url.QueryEscape":    url.QueryEscape(password),
		"url.PathEscape":     url.PathEscape(password),
		"url.UserPassword":   strings.TrimPrefix(url.UserPassword("u", password).String(), "u:"),
		"all, in lower case": "a%2fb%20c%2bd%27e%22f%5cg%3c%26%c3%a9%25~%2a%24h",
		"Go":                 strings.Trim(strconv.Quote(password), `"`),
		"JSON":               strings.Trim(string(inJSON), `"`),
		"libpq":              inDSN,
	} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, "<***>", pgurl.Redact("<"+form+">", u), form)
		})
	}
}

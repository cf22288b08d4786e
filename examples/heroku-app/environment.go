package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"strings"
)

// problem is something that is wrong with the environment, as a person is told: what, and what to do about it.
type problem struct {
	variable, message, remedy string
}

func (p problem) tell(log *slog.Logger) {
	log.Error(p.message, "variable", p.variable, "remedy", p.remedy)
}

// environment reads variables, and gathers what is wrong with them instead of stopping at the first.
type environment struct {
	get      func(string) string
	names    []string // that were asked for
	problems []problem
	settings map[string]string // what was given, of what is not secret
}

func (e *environment) complain(name, message, remedy string) {
	then := " Then start this program again."
	if e.get("DYNO") != "" {
		then = fmt.Sprintf(" That is: heroku config:set %s=… -a %s (or config:unset); the app starts again by itself.", name, cmp.Or(e.get("HEROKU_APP_NAME"), "this-app"))
	}
	e.problems = append(e.problems, problem{name, name + " " + message + ".", remedy + then})
}

// raw returns a value that is shown nowhere, as it stands.
func (e *environment) raw(name string) string {
	if !slices.Contains(e.names, name) {
		e.names = append(e.names, name)
	}
	return e.get(name)
}

// secret returns a value that is shown nowhere, without what was pasted around it.
func (e *environment) secret(name string) string { return strings.TrimSpace(e.raw(name)) }

func (e *environment) text(name string) string {
	value := e.secret(name)
	if value != "" {
		e.settings[name] = value
	}
	return value
}

// yes reads a switch. What cannot be understood counts as no.
func (e *environment) yes(name string) bool {
	value := e.text(name)
	if value == "" {
		return false
	}
	on, err := strconv.ParseBool(value)
	if err != nil {
		e.complain(name, fmt.Sprintf("is %q, which is neither true nor false", value), "Set it to true, or remove it.")
	}
	return on
}

// number reads a number; 0 if there is none.
func (e *environment) number(name string, least, most int64) int64 {
	value := e.text(name)
	if value == "" {
		return 0
	}
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil || n < least || n > most {
		e.complain(name, fmt.Sprintf("is %q, which is not a number from %d to %d", value, least, most), "Set it to one, or remove it.")
		return 0
	}
	return n
}

// choice reads a word; the first one if there is none.
func (e *environment) choice(name string, words ...string) string {
	value := e.text(name)
	if value == "" || slices.Contains(words, value) {
		return value
	}
	e.complain(name, fmt.Sprintf("is %q", value), "Set it to "+strings.Join(words[:len(words)-1], ", ")+" or "+words[len(words)-1]+", or remove it.")
	return ""
}

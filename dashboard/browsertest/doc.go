// Package browsertest tests the dashboard in a real browser, Chromium, on real servers: what a person does, clicking, typing and tapping.
// It has nothing but tests. Where there is no browser they are skipped; scripts/setup.sh installs one.
//
// DASHBOARD_SCREENSHOTS names a directory in which each phase is kept as a picture, from a desktop, dark and light, and from a phone:
// `make screenshots` does that.
package browsertest

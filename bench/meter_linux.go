package main

import (
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// adoptOrphans makes this process the parent of daemons that tools leave behind, so that their use is counted too.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("becoming the parent of orphans: %w", err)
	}
	return nil
}

// reap lets an adopted process go that has ended.
func reap(pid int) {
	var status syscall.WaitStatus
	_, _ = syscall.Wait4(pid, &status, syscall.WNOHANG, nil) // it may be another's child
}

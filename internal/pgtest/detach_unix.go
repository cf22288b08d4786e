//go:build unix

package pgtest

import (
	"os/exec"
	"syscall"
)

// detach keeps signals meant for this process's terminal or group (Ctrl-C)
// away from the command, so that the server outlives an orderly shutdown.
func detach(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
}

// terminateGroup sends SIGTERM to a detached command and its children.
func terminateGroup(cmd *exec.Cmd) error {
	return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM)
}

//go:build !unix

package pgtest

import "os/exec"

// detach does nothing here: servers run in containers only.
func detach(*exec.Cmd) {}

// terminateGroup ends the command.
func terminateGroup(cmd *exec.Cmd) error { return cmd.Process.Kill() }

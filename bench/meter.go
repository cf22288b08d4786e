package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// meter counts the CPU time and the memory of a tool's processes, with all that they start. Servers are not among
// them: they run in containers, or were there before.
type meter struct {
	before map[int]bool // children that do not belong to the tool

	mu      sync.Mutex
	roots   map[int]bool          // started by start
	daemons map[int]time.Duration // left behind, with all that they start: the CPU time of each when last seen
	cpu     time.Duration         // of the roots, and of what they have waited for
	peak    int64                 // bytes

	stop    context.CancelFunc
	stopped chan struct{}
}

const sampleEvery = 50 * time.Millisecond

func startMeter(ctx context.Context) *meter {
	ctx, stop := context.WithCancel(ctx)
	m := &meter{before: map[int]bool{}, roots: map[int]bool{}, daemons: map[int]time.Duration{}, stop: stop, stopped: make(chan struct{})}
	for _, pid := range children(os.Getpid()) {
		m.before[pid] = true
	}
	go func() {
		defer close(m.stopped)
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			m.sample()
			select {
			case <-ctx.Done():
				m.sample()
				return
			case <-tick.C:
			}
		}
	}()
	return m
}

// start starts a program of the tool. wait has to follow.
func (m *meter) start(cmd *exec.Cmd) error {
	m.mu.Lock() // or else a sample takes it for an orphan
	defer m.mu.Unlock()
	if err := cmd.Start(); err != nil {
		return err
	}
	m.roots[cmd.Process.Pid] = true
	return nil
}

func (m *meter) wait(cmd *exec.Cmd) error {
	err := cmd.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	// Of the process and of all its children that it has waited for.
	m.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return err
}

// run runs a program of the tool. Its error says what the program said.
func (m *meter) run(cmd *exec.Cmd) error {
	said := &bytes.Buffer{}
	if cmd.Stderr == nil {
		cmd.Stderr = said
	}
	if cmd.Stdout == nil {
		cmd.Stdout = said
	}
	err := m.start(cmd)
	if err == nil {
		err = m.wait(cmd)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, lastLines(said.String()))
	}
	return nil
}

func lastLines(text string) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-8):], "\n")
}

// finish returns the CPU time and the greatest sum, at any one time, of the peak memory of the processes alive.
func (m *meter) finish() (cpu time.Duration, peak int64) {
	m.stop()
	<-m.stopped // with the last sample
	cpu = m.cpu
	for pid, used := range m.daemons {
		cpu += used
		reap(pid)
	}
	m.endDaemons()
	return cpu, m.peak
}

// used is the CPU time of the tool's processes so far, as far as they run still or were waited for.
func (m *meter) used() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := m.cpu
	var walk func(pid int)
	walk = func(pid int) {
		if t, ok := cpuTime(pid); ok {
			sum += t
		}
		for _, child := range children(pid) {
			walk(child)
		}
	}
	for _, pid := range children(os.Getpid()) {
		if !m.before[pid] {
			walk(pid)
		}
	}
	return sum
}

// highest is the peak memory so far.
func (m *meter) highest() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.peak
}

// endDaemons ends what a tool has left behind, which is nothing unless it failed or was interrupted.
func (m *meter) endDaemons() {
	for range 10 { // ending one hands its children over to us
		var left []int
		for _, pid := range children(os.Getpid()) {
			if !m.before[pid] && !m.roots[pid] {
				left = append(left, pid)
			}
		}
		if len(left) == 0 {
			return
		}
		for _, pid := range left {
			if p, err := os.FindProcess(pid); err == nil {
				_ = p.Kill() // gone meanwhile, perhaps
			}
		}
		time.Sleep(20 * time.Millisecond)
		for _, pid := range left {
			reap(pid)
		}
	}
}

func (m *meter) sample() {
	m.mu.Lock()
	defer m.mu.Unlock()
	var sum int64
	var walk func(pid int, daemon bool)
	walk = func(pid int, daemon bool) {
		sum += highWater(pid)
		if used, ok := cpuTime(pid); daemon && ok {
			m.daemons[pid] = used
		}
		for _, child := range children(pid) {
			walk(child, daemon)
		}
	}
	for _, pid := range children(os.Getpid()) {
		if !m.before[pid] {
			walk(pid, !m.roots[pid])
		}
	}
	m.peak = max(m.peak, sum)
}

// children are the processes that a process has started and that are there still.
func children(pid int) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid)) // the pattern is good
	for _, name := range tasks {
		text, _ := os.ReadFile(name) // gone meanwhile
		for field := range strings.FieldsSeq(string(text)) {
			if child, err := strconv.Atoi(field); err == nil {
				pids = append(pids, child)
			}
		}
	}
	return pids
}

// highWater is the most memory that a process has had so far, in bytes.
func highWater(pid int) int64 {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid)) // gone meanwhile
	_, rest, found := strings.Cut(string(text), "VmHWM:")
	fields := strings.Fields(rest)
	if !found || len(fields) == 0 { // it has ended
		return 0
	}
	kb, _ := strconv.ParseInt(fields[0], 10, 64)
	return kb << 10
}

// cpuTime is the CPU time of a process, without its children: one that ignores SIGCHLD, as Bucardo does, is not
// told theirs.
func cpuTime(pid int) (time.Duration, bool) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, false
	}
	// The name, in parentheses, may contain anything.
	fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
	var ticks int64
	for _, at := range []int{11, 12} { // utime, stime
		if at < len(fields) {
			n, _ := strconv.ParseInt(fields[at], 10, 64)
			ticks += n
		}
	}
	const ticksPerSecond = 100 // USER_HZ, the same on all platforms that matter
	return time.Duration(ticks) * time.Second / ticksPerSecond, true
}

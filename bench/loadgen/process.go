package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// processTree returns pid and its descendants.
func processTree(pid int) []int {
	if pid == 0 {
		return nil
	}
	tree := []int{pid}
	threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, path := range threads {
		b, _ := os.ReadFile(path)
		for _, f := range strings.Fields(string(b)) {
			if child, err := strconv.Atoi(f); err == nil {
				tree = append(tree, processTree(child)...)
			}
		}
	}
	return tree
}

// cpuSeconds adds up user and system time of a process tree, from /proc/PID/stat (100 ticks a second).
func cpuSeconds(pid int) float64 {
	total := 0.0
	for _, p := range processTree(pid) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p))
		if err != nil {
			continue
		}
		f := strings.Fields(string(b[strings.LastIndexByte(string(b), ')')+2:]))
		user, _ := strconv.ParseFloat(f[11], 64)
		system, _ := strconv.ParseFloat(f[12], 64)
		total += (user + system) / 100
	}
	return total
}

// peakRSS adds up the peak resident memory of a process tree, in MiB.
func peakRSS(pid int) float64 {
	total := 0.0
	for _, p := range processTree(pid) {
		b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
		for _, line := range strings.Split(string(b), "\n") {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "VmHWM:" {
				kb, _ := strconv.ParseFloat(f[1], 64)
				total += kb / 1024
			}
		}
	}
	return total
}

// Another runtime at the same work: Go's os/exec.
//
//	os_exec [-n COUNT] [-w WIDTH] [-o SIZE] [-i] program [arguments]
//
// The options mean what they mean to limit.c, and so does what it prints.

package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

var input = bytes.Repeat([]byte("x"), 1024)

func cpuTime() (time.Duration, error) {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		return 0, err
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano()), nil
}

// child starts one and waits for it.
func child(command []string, size int, withInput bool) error {
	var output bytes.Buffer
	process := exec.Command(command[0], command[1:]...)
	// What is nil would be /dev/null, opened anew for each child.
	process.Stdin, process.Stdout, process.Stderr = os.Stdin, os.Stdout, os.Stderr
	if size >= 0 {
		process.Stdout = &output
	}
	if withInput {
		process.Stdin = bytes.NewReader(input)
	}
	if err := process.Run(); err != nil {
		return err
	}
	if size >= 0 && output.Len() != size {
		return fmt.Errorf("%d bytes of output, not %d", output.Len(), size)
	}
	return nil
}

func run() error {
	count := flag.Int64("n", 1, "children in all")
	width := flag.Int("w", 1, "of them alive at a time")
	size := flag.Int("o", -1, "read their output, so many bytes")
	withInput := flag.Bool("i", false, "write 1 kB to their stdin")
	flag.Parse()
	command := flag.Args()
	if len(command) == 0 || *count < 1 || *width < 1 {
		return fmt.Errorf("wrong arguments: %q", os.Args[1:])
	}
	// A first use probes things, as with the other peers.
	if err := child(command, *size, *withInput); err != nil {
		return err
	}

	failed := make([]error, *width)
	left := *count
	cpu, err := cpuTime()
	if err != nil {
		return err
	}
	start := time.Now()
	var group sync.WaitGroup
	for i := range failed {
		group.Add(1)
		go func(failed *error) {
			defer group.Done()
			for *failed == nil && atomic.AddInt64(&left, -1) >= 0 {
				*failed = child(command, *size, *withInput)
			}
		}(&failed[i])
	}
	group.Wait()
	wall := time.Since(start)
	end, err := cpuTime()
	if err != nil {
		return err
	}
	for _, err := range failed {
		if err != nil {
			return err
		}
	}
	fmt.Printf("{\"wall\": %.9f, \"cpu\": %.9f}\n", wall.Seconds(), (end - cpu).Seconds())
	return nil
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "os_exec:", err)
		os.Exit(1)
	}
}

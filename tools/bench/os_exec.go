// Another runtime at the same work: Go's os/exec.
//
//	os_exec [-n COUNT] [-w WIDTH] [-o SIZE] [-i] [-e] [-d] program [arguments]
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

type options struct {
	size       int
	withInput  bool
	withErrors bool
	withNull   bool
}

// child starts one and waits for it.
func child(command []string, with options) error {
	var output, errors bytes.Buffer
	process := exec.Command(command[0], command[1:]...)
	// What is nil is /dev/null, opened anew for each child.
	if !with.withNull {
		process.Stdin, process.Stdout, process.Stderr = os.Stdin, os.Stdout, os.Stderr
	}
	if with.size >= 0 {
		process.Stdout = &output
	}
	if with.withErrors {
		process.Stderr = &errors
	}
	if with.withInput {
		process.Stdin = bytes.NewReader(input)
	}
	if err := process.Run(); err != nil {
		return err
	}
	if with.size >= 0 && output.Len() != with.size {
		return fmt.Errorf("%d bytes of output, not %d", output.Len(), with.size)
	}
	if errors.Len() > 0 {
		return fmt.Errorf("a child wrote to stderr: %q", errors.String())
	}
	return nil
}

func run() error {
	count := flag.Int64("n", 1, "children in all")
	width := flag.Int("w", 1, "of them alive at a time")
	var with options
	flag.IntVar(&with.size, "o", -1, "read their output, so many bytes")
	flag.BoolVar(&with.withInput, "i", false, "write 1 kB to their stdin")
	flag.BoolVar(&with.withErrors, "e", false, "read their stderr, which is empty")
	flag.BoolVar(&with.withNull, "d", false, "their streams are /dev/null")
	flag.Parse()
	command := flag.Args()
	if len(command) == 0 || *count < 1 || *width < 1 {
		return fmt.Errorf("wrong arguments: %q", os.Args[1:])
	}
	// A first use probes things, as with the other peers.
	if err := child(command, with); err != nil {
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
				*failed = child(command, with)
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

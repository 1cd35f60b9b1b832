package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"time"

	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/workflow"
)

// When each activity of the workflow under way began to run.
var ticks struct {
	sync.Mutex
	at []time.Time
}

func Tick(ctx context.Context, in []byte) ([]byte, error) {
	ticks.Lock()
	ticks.at = append(ticks.at, time.Now())
	ticks.Unlock()
	return in, nil
}

// Growth runs activities one after the other in one history.
func Growth(ctx workflow.Context, activities int, payload []byte) error {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 60 * time.Second})
	for i := 0; i < activities; i++ {
		if err := workflow.ExecuteActivity(ctx, Tick, payload).Get(ctx, nil); err != nil {
			return err
		}
	}
	return nil
}

const window = 20 // activities around the 10th, and around the 1000th

// runGrowth reports the mean time from one activity to the next around the 10th and around the last, each the median
// of its means in n workflows run one after the other.
func runGrowth(c client.Client, tq string, n, activities, payload, pid int) {
	one := func(id string, activities int) error {
		ticks.at = nil
		opts := client.StartWorkflowOptions{ID: fmt.Sprintf("%s-%s", tq, id), TaskQueue: tq}
		r, err := c.ExecuteWorkflow(context.Background(), opts, Growth, activities, make([]byte, payload))
		if err == nil {
			err = r.Get(context.Background(), nil)
		}
		if err == nil && len(ticks.at) != activities {
			err = fmt.Errorf("%d activities ran, not %d", len(ticks.at), activities)
		}
		return err
	}
	if err := one("warm", 50); err != nil {
		log.Fatal(err)
	}
	var early, late []float64
	failed := 0
	cpu0 := cpuSeconds(pid)
	t0 := time.Now()
	for i := 0; i < n; i++ {
		if err := one(fmt.Sprintf("growth-%d", i), activities); err != nil {
			log.Println("failure:", err)
			failed++
			continue
		}
		mean := func(first int) float64 {
			return float64(ticks.at[first+window].Sub(ticks.at[first]).Microseconds()) / 1000 / window
		}
		early, late = append(early, mean(0)), append(late, mean(activities-window-1))
	}
	el := time.Since(t0).Seconds()
	cpu := cpuSeconds(pid) - cpu0
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"n": n, "c": 1, "activities": activities, "failed": failed, "seconds": el, "per_s": float64(n-failed) / el,
		"early_ms": median(early), "late_ms": median(late), "late_to_early": median(late) / median(early),
		"server_cpu_ms_per_workflow": 1000 * cpu / float64(max(1, n-failed)), "server_peak_rss_mb": peakRSS(pid),
	})
}

func median(values []float64) float64 {
	if len(values) == 0 {
		return -1
	}
	sort.Float64s(values)
	return (values[(len(values)-1)/2] + values[len(values)/2]) / 2
}

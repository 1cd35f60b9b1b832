// loadgen drives a Temporal-compatible server with the official Go SDK and prints one JSON line. See README.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"sort"
	"sync"
	"sync/atomic"
	"time"

	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

type quiet struct{}

func (quiet) Debug(string, ...interface{}) {}
func (quiet) Info(string, ...interface{})  {}
func (quiet) Warn(string, ...interface{})  {}
func (quiet) Error(m string, k ...interface{}) {
	if os.Getenv("VERBOSE") != "" {
		log.Println(m, k)
	}
}

type In struct {
	Activities int
	Local      bool
	Parallel   bool
	Timer      time.Duration
	Payload    []byte
}

func Echo(ctx context.Context, in []byte) ([]byte, error) { return in, nil }

func Bench(ctx workflow.Context, in In) (int, error) {
	ctx = workflow.WithActivityOptions(ctx, workflow.ActivityOptions{StartToCloseTimeout: 60 * time.Second})
	ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: 60 * time.Second})
	if in.Timer > 0 {
		if err := workflow.Sleep(ctx, in.Timer); err != nil {
			return 0, err
		}
	}
	if in.Parallel {
		var futures []workflow.Future
		for i := 0; i < in.Activities; i++ {
			futures = append(futures, workflow.ExecuteActivity(ctx, Echo, in.Payload))
		}
		for _, f := range futures {
			if err := f.Get(ctx, nil); err != nil {
				return 0, err
			}
		}
		return in.Activities, nil
	}
	for i := 0; i < in.Activities; i++ {
		var out []byte
		if in.Local {
			if err := workflow.ExecuteLocalActivity(ctx, Echo, in.Payload).Get(ctx, &out); err != nil {
				return 0, err
			}
		} else if err := workflow.ExecuteActivity(ctx, Echo, in.Payload).Get(ctx, &out); err != nil {
			return 0, err
		}
	}
	return in.Activities, nil
}

func SignalSum(ctx workflow.Context, n int) (int, error) {
	ch := workflow.GetSignalChannel(ctx, "add")
	total := 0
	for i := 0; i < n; i++ {
		var v int
		ch.Receive(ctx, &v)
		total += v
	}
	return total, nil
}

func main() {
	addr := flag.String("addr", "127.0.0.1:7233", "frontend")
	ns := flag.String("ns", "default", "namespace")
	n := flag.Int("n", 1000, "workflows")
	conc := flag.Int("c", 50, "concurrent workflows")
	acts := flag.Int("activities", 1, "activities per workflow")
	local := flag.Bool("local", false, "local activities")
	parallel := flag.Bool("parallel", false, "schedule all activities at once")
	pid := flag.Int("pid", 0, "server process: report its CPU seconds per workflow, child processes included, and its peak memory")
	timer := flag.Duration("timer", 0, "timer first")
	payload := flag.Int("payload", 16, "payload bytes")
	startOnly := flag.Bool("start-only", false, "only start, no worker")
	pollers := flag.Int("pollers", 8, "pollers of each kind")
	eager := flag.Bool("eager", false, "allow eager activities")
	warm := flag.Int("warm", 50, "warm-up workflows")
	signals := flag.Int("signals", 0, "signals per workflow")
	growth := flag.Int("growth", 0, "one workflow of so many activities (1000 at least): the cost of late ones against early ones")
	noop := flag.Int("noop", 0, "no workflows: this many empty calls in place of each, to bench/noop.py")
	tq := flag.String("tq", fmt.Sprintf("bench-%d", time.Now().UnixNano()), "task queue")
	flag.Parse()
	if *noop > 0 {
		runNoop(*addr, *n, *conc, *noop, *warm, *payload, *pid)
		return
	}
	c, err := client.Dial(client.Options{HostPort: *addr, Namespace: *ns, Logger: quiet{}})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()
	if !*startOnly {
		w := worker.New(c, *tq, worker.Options{
			MaxConcurrentWorkflowTaskPollers: *pollers, MaxConcurrentActivityTaskPollers: *pollers,
			DisableEagerActivities: !*eager,
		})
		w.RegisterWorkflow(Bench)
		w.RegisterWorkflow(SignalSum)
		w.RegisterWorkflow(Growth)
		w.RegisterActivityWithOptions(Echo, activity.RegisterOptions{Name: "Echo"})
		w.RegisterActivity(Tick)
		if err := w.Start(); err != nil {
			log.Fatal(err)
		}
		defer w.Stop()
	}
	if *growth > 0 {
		runGrowth(c, *tq, *n, *growth, *payload, *pid)
		return
	}
	in := In{Activities: *acts, Local: *local, Parallel: *parallel, Timer: *timer, Payload: make([]byte, *payload)}
	one := func(tag string, i int) error {
		opts := client.StartWorkflowOptions{ID: fmt.Sprintf("%s-%s-%d", *tq, tag, i), TaskQueue: *tq}
		var r client.WorkflowRun
		var err error
		if *signals > 0 {
			r, err = c.ExecuteWorkflow(context.Background(), opts, SignalSum, *signals)
			for k := 0; err == nil && k < *signals; k++ {
				err = c.SignalWorkflow(context.Background(), r.GetID(), r.GetRunID(), "add", k)
			}
		} else {
			r, err = c.ExecuteWorkflow(context.Background(), opts, Bench, in)
		}
		if err == nil && !*startOnly {
			err = r.Get(context.Background(), nil)
		}
		return err
	}
	repeat(*warm, *conc, func(i int) error { return one("warm", i) })
	cpu0 := cpuSeconds(*pid)
	done := repeat(*n, *conc, func(i int) error { return one("run", i) })
	cpu := cpuSeconds(*pid) - cpu0
	report(done, map[string]any{"n": *n, "c": *conc, "activities": *acts}, cpu, *pid)
}

type outcome struct {
	millis  []float64 // of those that succeeded, sorted
	failed  int64
	elapsed time.Duration
}

// repeat calls one with 1 to total, conc at a time.
func repeat(total, conc int, one func(i int) error) outcome {
	var next, failed int64
	lats := make([][]float64, conc)
	var wg sync.WaitGroup
	t0 := time.Now()
	for g := 0; g < conc; g++ {
		wg.Add(1)
		go func(g int) {
			defer wg.Done()
			for {
				i := int(atomic.AddInt64(&next, 1))
				if i > total {
					return
				}
				s := time.Now()
				if err := one(i); err != nil {
					if atomic.AddInt64(&failed, 1) == 1 {
						log.Println("first failure:", err)
					}
					continue
				}
				lats[g] = append(lats[g], float64(time.Since(s).Microseconds())/1000)
			}
		}(g)
	}
	wg.Wait()
	el := time.Since(t0)
	var all []float64
	for _, l := range lats {
		all = append(all, l...)
	}
	sort.Float64s(all)
	return outcome{all, failed, el}
}

func report(done outcome, about map[string]any, cpu float64, pid int) {
	l := done.millis
	p := func(q float64) float64 {
		if len(l) == 0 {
			return 0
		}
		return l[min(len(l)-1, int(q*float64(len(l))))]
	}
	about["failed"], about["seconds"], about["per_s"] = done.failed, done.elapsed.Seconds(), float64(len(l))/done.elapsed.Seconds()
	about["p50_ms"], about["p99_ms"] = p(.5), p(.99)
	about["server_cpu_ms_per_workflow"] = 1000 * cpu / float64(max(1, len(l)))
	about["server_peak_rss_mb"] = peakRSS(pid)
	json.NewEncoder(os.Stdout).Encode(about)
}

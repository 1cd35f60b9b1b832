// Command sdk runs workflows of the Go SDK against the server at ADDRESS, and prints PASS or FAIL for each behaviour.
// With DEV_SERVER it lets the SDK's own test suite start that executable as a dev server, too.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"go.temporal.io/api/common/v1"
	"go.temporal.io/api/enums/v1"
	"go.temporal.io/api/workflowservice/v1"
	"go.temporal.io/sdk/activity"
	"go.temporal.io/sdk/client"
	"go.temporal.io/sdk/temporal"
	"go.temporal.io/sdk/testsuite"
	"go.temporal.io/sdk/worker"
	"go.temporal.io/sdk/workflow"
)

const queue = "go"

func flaky(ctx context.Context) (int32, error) {
	attempt := activity.GetInfo(ctx).Attempt
	if attempt < 3 {
		return 0, fmt.Errorf("attempt %d", attempt)
	}
	return attempt, nil
}

func declined(context.Context) error {
	return temporal.NewNonRetryableApplicationError("declined", "Declined", nil, 42)
}

func add(_ context.Context, a, b int) (int, error) { return a + b, nil }

func hold(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(20 * time.Millisecond):
			activity.RecordHeartbeat(ctx)
		}
	}
}

func options(ctx workflow.Context) workflow.Context {
	return workflow.WithActivityOptions(ctx, workflow.ActivityOptions{
		StartToCloseTimeout: 10 * time.Second,
		HeartbeatTimeout:    5 * time.Second,
		WaitForCancellation: true,
		RetryPolicy:         &temporal.RetryPolicy{InitialInterval: 10 * time.Millisecond},
	})
}

func retrying(ctx workflow.Context) (string, error) {
	ctx = options(ctx)
	var attempt int32
	if err := workflow.ExecuteActivity(ctx, flaky).Get(ctx, &attempt); err != nil {
		return "", err
	}
	err := workflow.ExecuteActivity(ctx, declined).Get(ctx, nil)
	var failed *temporal.ApplicationError
	if !errors.As(err, &failed) {
		return "", fmt.Errorf("no application error: %w", err)
	}
	var detail int
	if err := failed.Details(&detail); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %s %s %d", attempt, failed.Type(), failed.Message(), detail), nil
}

// account is changed by signals and updates until it is closed, and keeps what it has through continue-as-new.
func account(ctx workflow.Context, balance int, runs int) (int, error) {
	deposits := workflow.GetSignalChannel(ctx, "deposit")
	closing := workflow.GetSignalChannel(ctx, "close")
	if err := workflow.SetQueryHandler(ctx, "balance", func() (int, error) { return balance, nil }); err != nil {
		return 0, err
	}
	err := workflow.SetUpdateHandlerWithOptions(ctx, "withdraw", func(ctx workflow.Context, amount int) (int, error) {
		var left int
		err := workflow.ExecuteActivity(options(ctx), add, balance, -amount).Get(ctx, &left)
		balance = left
		return left, err
	}, workflow.UpdateHandlerOptions{Validator: func(amount int) error {
		if amount > balance {
			return fmt.Errorf("only %d left", balance)
		}
		return nil
	}})
	if err != nil {
		return 0, err
	}
	selector := workflow.NewSelector(ctx)
	closed, seen := false, 0
	selector.AddReceive(deposits, func(c workflow.ReceiveChannel, _ bool) {
		var amount int
		c.Receive(ctx, &amount)
		balance += amount
		seen++
	})
	selector.AddReceive(closing, func(c workflow.ReceiveChannel, _ bool) {
		c.Receive(ctx, nil)
		closed = true
	})
	for !closed {
		selector.Select(ctx)
		if seen == 2 && runs > 1 && !selector.HasPending() {
			return 0, workflow.NewContinueAsNewError(ctx, account, balance, runs-1)
		}
	}
	return balance, nil
}

func square(ctx workflow.Context, n int) (int, error) {
	if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
		return 0, err
	}
	if n == 13 {
		return 0, temporal.NewApplicationError("thirteen", "Unlucky")
	}
	return n * n, nil
}

func fanOut(ctx workflow.Context, n int) (string, error) {
	futures := make([]workflow.ChildWorkflowFuture, n)
	for i := range futures {
		futures[i] = workflow.ExecuteChildWorkflow(ctx, square, i)
	}
	sum := 0
	for _, future := range futures {
		var squared int
		if err := future.Get(ctx, &squared); err != nil {
			return "", err
		}
		sum += squared
	}
	err := workflow.ExecuteChildWorkflow(ctx, square, 13).Get(ctx, nil)
	var failed *temporal.ApplicationError
	if !errors.As(err, &failed) {
		return "", fmt.Errorf("no application error: %w", err)
	}
	return fmt.Sprintf("%d %s", sum, failed.Type()), nil
}

func local(ctx workflow.Context) (string, error) {
	ctx = workflow.WithLocalActivityOptions(ctx, workflow.LocalActivityOptions{StartToCloseTimeout: 5 * time.Second})
	var sum int
	if err := workflow.ExecuteLocalActivity(ctx, add, 1, 2).Get(ctx, &sum); err != nil {
		return "", err
	}
	var effect int
	if err := workflow.SideEffect(ctx, func(workflow.Context) any { return 7 }).Get(&effect); err != nil {
		return "", err
	}
	version := workflow.GetVersion(ctx, "change", workflow.DefaultVersion, 2)
	if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d %d %d", sum, effect, version), nil
}

func cancellable(ctx workflow.Context) (string, error) {
	err := workflow.ExecuteActivity(options(ctx), hold).Get(ctx, nil)
	if !temporal.IsCanceledError(err) {
		return "", fmt.Errorf("not cancelled: %w", err)
	}
	later, _ := workflow.NewDisconnectedContext(ctx)
	var sum int
	if err := workflow.ExecuteActivity(options(later), add, 1, 1).Get(later, &sum); err != nil {
		return "", err
	}
	return "", ctx.Err()
}

type suite struct {
	c      client.Client
	failed bool
}

func (s *suite) check(name string, test func(ctx context.Context) error) {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := test(ctx); err != nil {
		s.failed = true
		fmt.Printf("FAIL %s: %v\n", name, err)
		return
	}
	fmt.Printf("PASS %s\n", name)
}

func (s *suite) start(ctx context.Context, name string, w any, args ...any) (client.WorkflowRun, error) {
	id := fmt.Sprintf("go-%s-%d", name, time.Now().UnixNano())
	return s.c.ExecuteWorkflow(ctx, client.StartWorkflowOptions{ID: id, TaskQueue: queue}, w, args...)
}

// replayed fetches the history of a run and replays it.
func (s *suite) replayed(ctx context.Context, run client.WorkflowRun) error {
	replayer := worker.NewWorkflowReplayer()
	register(replayer)
	history, err := s.c.WorkflowService().GetWorkflowExecutionHistory(ctx, request(run))
	if err != nil {
		return err
	}
	return replayer.ReplayWorkflowHistory(nil, history.History)
}

func request(run client.WorkflowRun) *workflowservice.GetWorkflowExecutionHistoryRequest {
	return &workflowservice.GetWorkflowExecutionHistoryRequest{
		Namespace: client.DefaultNamespace,
		Execution: &common.WorkflowExecution{WorkflowId: run.GetID(), RunId: run.GetRunID()},
	}
}

func expect[T comparable](got, want T) error {
	if got != want {
		return fmt.Errorf("got %v, want %v", got, want)
	}
	return nil
}

// result runs a workflow, compares its result, and replays its history.
func result[T comparable](ctx context.Context, s *suite, want T, name string, w any, args ...any) error {
	run, err := s.start(ctx, name, w, args...)
	if err != nil {
		return err
	}
	var got T
	if err := run.Get(ctx, &got); err != nil {
		return err
	}
	if err := expect(got, want); err != nil {
		return err
	}
	return s.replayed(ctx, run)
}

func (s *suite) account(ctx context.Context) error {
	run, err := s.start(ctx, "account", account, 0, 2)
	if err != nil {
		return err
	}
	id := run.GetID()
	for range 2 {
		if err := s.c.SignalWorkflow(ctx, id, "", "deposit", 50); err != nil {
			return err
		}
	}
	if err := s.continued(ctx, run); err != nil {
		return err
	}
	value, err := s.c.QueryWorkflow(ctx, id, "", "balance")
	if err != nil {
		return err
	}
	var balance int
	if err := value.Get(&balance); err != nil {
		return err
	}
	if err := expect(balance, 100); err != nil {
		return err
	}
	withdraw := func(amount int) (left int, err error) {
		handle, err := s.c.UpdateWorkflow(ctx, client.UpdateWorkflowOptions{
			WorkflowID: id, UpdateName: "withdraw", Args: []any{amount},
			WaitForStage: client.WorkflowUpdateStageCompleted,
		})
		if err != nil {
			return 0, err
		}
		return left, handle.Get(ctx, &left)
	}
	left, err := withdraw(30)
	if err != nil {
		return err
	}
	if err := expect(left, 70); err != nil {
		return err
	}
	if _, err := withdraw(1000); err == nil || err.Error() != "only 70 left" {
		return fmt.Errorf("rejected: %v", err)
	}
	if err := s.c.SignalWorkflow(ctx, id, "", "close", nil); err != nil {
		return err
	}
	var end int
	if err := run.Get(ctx, &end); err != nil { // follows the runs
		return err
	}
	if err := expect(end, 70); err != nil {
		return err
	}
	return s.replayed(ctx, s.c.GetWorkflow(ctx, id, ""))
}

func (s *suite) continued(ctx context.Context, run client.WorkflowRun) error {
	for ctx.Err() == nil {
		described, err := s.c.DescribeWorkflowExecution(ctx, run.GetID(), run.GetRunID())
		if err != nil {
			return err
		}
		if described.WorkflowExecutionInfo.Status == enums.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return ctx.Err()
}

func (s *suite) cancel(ctx context.Context) error {
	run, err := s.start(ctx, "cancel", cancellable)
	if err != nil {
		return err
	}
	time.Sleep(200 * time.Millisecond)
	if err := s.c.CancelWorkflow(ctx, run.GetID(), ""); err != nil {
		return err
	}
	if err := run.Get(ctx, nil); !temporal.IsCanceledError(err) {
		return fmt.Errorf("not cancelled: %v", err)
	}
	return s.replayed(ctx, run)
}

type registry interface{ RegisterWorkflow(w any) }

func register(r registry) {
	for _, w := range []any{retrying, account, square, fanOut, local, cancellable} {
		r.RegisterWorkflow(w)
	}
}

func devServer(executable string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	server, err := testsuite.StartDevServer(ctx, testsuite.DevServerOptions{ExistingPath: executable})
	if err != nil {
		return err
	}
	s := &suite{c: server.Client()}
	w := worker.New(s.c, queue, worker.Options{})
	register(w)
	if err := w.Start(); err != nil {
		return err
	}
	err = result(ctx, s, 49, "square", square, 7)
	w.Stop()
	return errors.Join(err, server.Stop())
}

func main() {
	c, err := client.Dial(client.Options{HostPort: os.Getenv("ADDRESS")})
	if err != nil {
		fmt.Println("FAIL connect:", err)
		os.Exit(1)
	}
	defer c.Close()
	w := worker.New(c, queue, worker.Options{MaxHeartbeatThrottleInterval: 10 * time.Millisecond})
	register(w)
	for _, a := range []any{flaky, declined, add, hold} {
		w.RegisterActivity(a)
	}
	if err := w.Start(); err != nil {
		fmt.Println("FAIL worker:", err)
		os.Exit(1)
	}
	s := &suite{c: c}
	s.check("activities are retried and fail", func(ctx context.Context) error {
		return result(ctx, s, "3 Declined declined 42", "retrying", retrying)
	})
	s.check("signals, query, updates, continue-as-new", s.account)
	s.check("children and timers", func(ctx context.Context) error {
		return result(ctx, s, "285 Unlucky", "fan-out", fanOut, 10)
	})
	s.check("local activities, side effects, versions", func(ctx context.Context) error {
		return result(ctx, s, "3 7 2", "local", local)
	})
	s.check("cancel", s.cancel)
	w.Stop()
	if executable := os.Getenv("DEV_SERVER"); executable != "" {
		s.check("dev server", func(context.Context) error { return devServer(executable) })
	}
	if s.failed {
		os.Exit(1)
	}
}

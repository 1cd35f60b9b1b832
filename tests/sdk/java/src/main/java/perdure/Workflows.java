package perdure;

import io.temporal.activity.Activity;
import io.temporal.activity.ActivityCancellationType;
import io.temporal.activity.ActivityInterface;
import io.temporal.activity.ActivityOptions;
import io.temporal.activity.LocalActivityOptions;
import io.temporal.common.RetryOptions;
import io.temporal.failure.ActivityFailure;
import io.temporal.failure.ApplicationFailure;
import io.temporal.failure.CanceledFailure;
import io.temporal.failure.ChildWorkflowFailure;
import io.temporal.workflow.Async;
import io.temporal.workflow.Promise;
import io.temporal.workflow.QueryMethod;
import io.temporal.workflow.SignalMethod;
import io.temporal.workflow.UpdateMethod;
import io.temporal.workflow.UpdateValidatorMethod;
import io.temporal.workflow.Workflow;
import io.temporal.workflow.WorkflowInterface;
import io.temporal.workflow.WorkflowMethod;
import java.time.Duration;
import java.util.ArrayList;
import java.util.List;

/** The workflows and activities of the tests. */
final class Workflows {
  private Workflows() {}

  @ActivityInterface
  public interface Activities {
    int flaky();

    void declined();

    int add(int a, int b);

    void hold();
  }

  public static final class ActivitiesImpl implements Activities {
    @Override
    public int flaky() {
      int attempt = Activity.getExecutionContext().getInfo().getAttempt();
      if (attempt < 3) {
        throw new IllegalStateException("attempt " + attempt);
      }
      return attempt;
    }

    @Override
    public void declined() {
      throw ApplicationFailure.newNonRetryableFailure("declined", "Declined", 42);
    }

    @Override
    public int add(int a, int b) {
      return a + b;
    }

    @Override
    public void hold() {
      while (true) {
        Activity.getExecutionContext().heartbeat(null);
        try {
          Thread.sleep(20);
        } catch (InterruptedException e) {
          throw new IllegalStateException(e);
        }
      }
    }
  }

  static Activities activities() {
    return Workflow.newActivityStub(
        Activities.class,
        ActivityOptions.newBuilder()
            .setStartToCloseTimeout(Duration.ofSeconds(10))
            .setHeartbeatTimeout(Duration.ofMillis(500))
            .setCancellationType(ActivityCancellationType.WAIT_CANCELLATION_COMPLETED)
            .setRetryOptions(
                RetryOptions.newBuilder().setInitialInterval(Duration.ofMillis(10)).build())
            .build());
  }

  @WorkflowInterface
  public interface Retrying {
    @WorkflowMethod
    String run();
  }

  public static final class RetryingImpl implements Retrying {
    @Override
    public String run() {
      int attempt = activities().flaky();
      try {
        activities().declined();
        return "not declined";
      } catch (ActivityFailure e) {
        ApplicationFailure failure = (ApplicationFailure) e.getCause();
        return attempt
            + " "
            + failure.getType()
            + " "
            + failure.getOriginalMessage()
            + " "
            + failure.getDetails().get(0, Integer.class);
      }
    }
  }

  /** Changed by signals and updates until it is closed; keeps what it has through continue-as-new. */
  @WorkflowInterface
  public interface Account {
    @WorkflowMethod
    int run(int balance, int runs);

    @SignalMethod
    void deposit(int amount);

    @SignalMethod
    void close();

    @QueryMethod
    int balance();

    @UpdateMethod
    int withdraw(int amount);

    @UpdateValidatorMethod(updateName = "withdraw")
    void check(int amount);
  }

  public static final class AccountImpl implements Account {
    private int balance;
    private int seen;
    private boolean closed;

    @Override
    public int run(int balance, int runs) {
      this.balance += balance;
      Workflow.await(() -> closed || (seen == 2 && runs > 1));
      if (!closed) {
        Workflow.continueAsNew(this.balance, runs - 1);
      }
      return this.balance;
    }

    @Override
    public void deposit(int amount) {
      balance += amount;
      seen++;
    }

    @Override
    public void close() {
      closed = true;
    }

    @Override
    public int balance() {
      return balance;
    }

    @Override
    public int withdraw(int amount) {
      balance = activities().add(balance, -amount);
      return balance;
    }

    @Override
    public void check(int amount) {
      if (amount > balance) {
        throw new IllegalArgumentException("only " + balance + " left");
      }
    }
  }

  @WorkflowInterface
  public interface Square {
    @WorkflowMethod
    int square(int n);
  }

  public static final class SquareImpl implements Square {
    @Override
    public int square(int n) {
      Workflow.sleep(Duration.ofMillis(20));
      if (n == 13) {
        throw ApplicationFailure.newFailure("thirteen", "Unlucky");
      }
      return n * n;
    }
  }

  @WorkflowInterface
  public interface FanOut {
    @WorkflowMethod
    String fanOut(int n);
  }

  public static final class FanOutImpl implements FanOut {
    @Override
    public String fanOut(int n) {
      List<Promise<Integer>> squares = new ArrayList<>();
      for (int i = 0; i < n; i++) {
        squares.add(Async.function(Workflow.newChildWorkflowStub(Square.class)::square, i));
      }
      int sum = squares.stream().mapToInt(Promise::get).sum();
      try {
        Workflow.newChildWorkflowStub(Square.class).square(13);
        return "not unlucky";
      } catch (ChildWorkflowFailure e) {
        return sum + " " + ((ApplicationFailure) e.getCause()).getType();
      }
    }
  }

  @WorkflowInterface
  public interface Markers {
    @WorkflowMethod
    String markers();
  }

  public static final class MarkersImpl implements Markers {
    @Override
    public String markers() {
      Activities local =
          Workflow.newLocalActivityStub(
              Activities.class,
              LocalActivityOptions.newBuilder()
                  .setStartToCloseTimeout(Duration.ofSeconds(5))
                  .build());
      int sum = local.add(1, 2);
      int effect = Workflow.sideEffect(Integer.class, () -> 7);
      int version = Workflow.getVersion("change", Workflow.DEFAULT_VERSION, 2);
      Workflow.sleep(Duration.ofMillis(20));
      return sum + " " + effect + " " + version;
    }
  }

  @WorkflowInterface
  public interface Cancellable {
    @WorkflowMethod
    void cancellable();
  }

  public static final class CancellableImpl implements Cancellable {
    @Override
    public void cancellable() {
      try {
        activities().hold();
      } catch (ActivityFailure e) {
        if (!(e.getCause() instanceof CanceledFailure)) {
          throw e;
        }
        Workflow.newDetachedCancellationScope(() -> activities().add(1, 1)).run();
        throw e;
      }
    }
  }

  static final Class<?>[] ALL = {
    RetryingImpl.class,
    AccountImpl.class,
    SquareImpl.class,
    FanOutImpl.class,
    MarkersImpl.class,
    CancellableImpl.class
  };
}

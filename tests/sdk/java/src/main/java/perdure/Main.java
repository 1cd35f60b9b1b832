package perdure;

import io.temporal.api.enums.v1.WorkflowExecutionStatus;
import io.temporal.client.WorkflowClient;
import io.temporal.client.WorkflowFailedException;
import io.temporal.client.WorkflowOptions;
import io.temporal.client.WorkflowStub;
import io.temporal.client.WorkflowUpdateException;
import io.temporal.failure.CanceledFailure;
import io.temporal.serviceclient.WorkflowServiceStubs;
import io.temporal.serviceclient.WorkflowServiceStubsOptions;
import io.temporal.testing.TestEnvironmentOptions;
import io.temporal.testing.TestWorkflowEnvironment;
import io.temporal.testing.WorkflowReplayer;
import io.temporal.worker.Worker;
import io.temporal.worker.WorkerFactory;
import java.util.Optional;
import java.util.UUID;

/**
 * Runs workflows of the Java SDK against the server at ADDRESS, and prints PASS or FAIL for each
 * behaviour.
 */
public final class Main {
  private static final String QUEUE = "java";

  private final WorkflowClient client;
  private boolean failed;

  private Main(WorkflowClient client) {
    this.client = client;
  }

  private interface Test {
    void run() throws Exception;
  }

  private void check(String name, Test test) {
    try {
      test.run();
      System.out.println("PASS " + name);
    } catch (Throwable e) {
      failed = true;
      System.out.println("FAIL " + name);
      e.printStackTrace(System.out);
    }
  }

  private static void expect(Object got, Object want) {
    if (!want.equals(got)) {
      throw new AssertionError("got " + got + ", want " + want);
    }
  }

  private WorkflowStub start(String type, Object... args) {
    WorkflowStub stub =
        client.newUntypedWorkflowStub(
            type,
            WorkflowOptions.newBuilder()
                .setTaskQueue(QUEUE)
                .setWorkflowId("java-" + type + "-" + UUID.randomUUID())
                .build());
    stub.start(args);
    return stub;
  }

  private <T> void result(T want, String type, Object... args) throws Exception {
    WorkflowStub stub = start(type, args);
    expect(stub.getResult(want.getClass()), want);
    replayed(stub);
  }

  private void replayed(WorkflowStub stub) throws Exception {
    WorkflowReplayer.replayWorkflowExecution(
        client.fetchHistory(stub.getExecution().getWorkflowId()), Workflows.ALL[0], more());
  }

  private static Class<?>[] more() {
    Class<?>[] more = new Class<?>[Workflows.ALL.length - 1];
    System.arraycopy(Workflows.ALL, 1, more, 0, more.length);
    return more;
  }

  private void account() throws Exception {
    WorkflowStub first = start("Account", 0, 2);
    WorkflowStub current =
        client.newUntypedWorkflowStub(
            first.getExecution().getWorkflowId(), Optional.empty(), Optional.empty());
    current.signal("deposit", 50);
    current.signal("deposit", 50);
    WorkflowStub run =
        client.newUntypedWorkflowStub(first.getExecution(), Optional.of("Account"));
    while (run.describe().getStatus()
        != WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW) {
      Thread.sleep(20);
    }
    expect(current.query("balance", Integer.class), 100);
    expect(current.update("withdraw", Integer.class, 30), 70);
    try {
      current.update("withdraw", Integer.class, 1000);
      throw new AssertionError("not rejected");
    } catch (WorkflowUpdateException e) {
      if (!e.getCause().getMessage().contains("only 70 left")) {
        throw e;
      }
    }
    current.signal("close");
    expect(first.getResult(Integer.class), 70); // follows the runs
    replayed(current);
  }

  private void cancel() throws Exception {
    WorkflowStub stub = start("Cancellable");
    Thread.sleep(300);
    stub.cancel();
    try {
      stub.getResult(Void.class);
      throw new AssertionError("not cancelled");
    } catch (WorkflowFailedException e) {
      expect(e.getCause().getClass(), CanceledFailure.class);
    }
    replayed(stub);
  }

  /** The SDK's test environment, on the same server. */
  private static void environment(String address) {
    TestWorkflowEnvironment environment =
        TestWorkflowEnvironment.newInstance(
            TestEnvironmentOptions.newBuilder()
                .setUseExternalService(true)
                .setTarget(address)
                .build());
    try {
      Worker worker = environment.newWorker("java-environment");
      worker.registerWorkflowImplementationTypes(Workflows.SquareImpl.class);
      environment.start();
      Workflows.Square square =
          environment
              .getWorkflowClient()
              .newWorkflowStub(
                  Workflows.Square.class,
                  WorkflowOptions.newBuilder().setTaskQueue("java-environment").build());
      expect(square.square(7), 49);
    } finally {
      environment.close();
    }
  }

  public static void main(String[] args) {
    String address = System.getenv("ADDRESS");
    WorkflowServiceStubs service =
        WorkflowServiceStubs.newServiceStubs(
            WorkflowServiceStubsOptions.newBuilder().setTarget(address).build());
    WorkflowClient client = WorkflowClient.newInstance(service);
    WorkerFactory factory = WorkerFactory.newInstance(client);
    Worker worker = factory.newWorker(QUEUE);
    worker.registerWorkflowImplementationTypes(Workflows.ALL);
    worker.registerActivitiesImplementations(new Workflows.ActivitiesImpl());
    factory.start();
    Main main = new Main(client);
    main.check(
        "activities are retried and fail",
        () -> main.result("3 Declined declined 42", "Retrying"));
    main.check("signals, query, updates, continue-as-new", main::account);
    main.check("children and timers", () -> main.result("285 Unlucky", "FanOut", 10));
    main.check("local activities, side effects, versions", () -> main.result("3 7 2", "Markers"));
    main.check("cancel", main::cancel);
    main.check("test environment", () -> environment(address));
    factory.shutdownNow();
    service.shutdownNow();
    System.out.flush();
    System.exit(main.failed ? 1 : 0);
  }
}

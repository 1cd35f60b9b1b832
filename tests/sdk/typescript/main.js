// Runs workflows of the TypeScript SDK against the server at ADDRESS, and prints PASS or FAIL for each behaviour.
// With DEV_SERVER it lets the SDK's own test environment start that executable as a dev server, too.
'use strict';

const assert = require('node:assert/strict');
const { randomUUID } = require('node:crypto');
const { setTimeout: pause } = require('node:timers/promises');
const activity = require('@temporalio/activity');
const { Client, Connection } = require('@temporalio/client');
const { TestWorkflowEnvironment } = require('@temporalio/testing');
const { NativeConnection, Runtime, Worker, bundleWorkflowCode } = require('@temporalio/worker');

const taskQueue = 'typescript';

const activities = {
  async flaky() {
    const { attempt } = activity.Context.current().info;
    if (attempt < 3) throw new Error(`attempt ${attempt}`);
    return attempt;
  },
  async declined() {
    throw activity.ApplicationFailure.nonRetryable('declined', 'Declined', 42);
  },
  async add(a, b) {
    return a + b;
  },
  async hold() {
    for (;;) {
      activity.heartbeat();
      await activity.sleep(20);
    }
  },
};

let failed = false;

async function check(name, test) {
  try {
    const late = pause(30_000, undefined, { ref: false }).then(() => assert.fail('took too long'));
    await Promise.race([test(), late]);
    console.log(`PASS ${name}`);
  } catch (e) {
    failed = true;
    console.log(`FAIL ${name}: ${e.stack}`, e.cause ?? '');
  }
}

async function main() {
  Runtime.install({ logger: { log() {}, trace() {}, debug() {}, info() {}, warn: console.error, error: console.error } });
  const address = process.env.ADDRESS;
  const workflowBundle = await bundleWorkflowCode({ workflowsPath: require.resolve('./workflows.js') });
  const client = new Client({ connection: await Connection.connect({ address }) });
  const connection = await NativeConnection.connect({ address });
  const worker = await Worker.create({
    connection,
    taskQueue,
    workflowBundle,
    activities,
    maxHeartbeatThrottleInterval: 10,
  });

  const start = (type, ...args) =>
    client.workflow.start(type, { taskQueue, workflowId: `ts-${type}-${randomUUID()}`, args });
  const replayed = async (handle) =>
    Worker.runReplayHistory({ workflowBundle }, await handle.fetchHistory(), handle.workflowId);
  const result = async (want, type, ...args) => {
    const handle = await start(type, ...args);
    assert.deepEqual(await handle.result(), want);
    await replayed(handle);
  };

  await worker.runUntil(async () => {
    await check('activities are retried and fail', () => result([3, 'Declined', 'declined', 42], 'retrying'));
    await check('signals, query, updates, continue-as-new', async () => {
      const first = await start('account', 0, 2);
      const current = client.workflow.getHandle(first.workflowId);
      await current.signal('deposit', 50);
      await current.signal('deposit', 50);
      const firstRun = client.workflow.getHandle(first.workflowId, first.firstExecutionRunId);
      while ((await firstRun.describe()).status.name !== 'CONTINUED_AS_NEW') await pause(20);
      assert.equal(await current.query('balance'), 100);
      assert.equal(await current.executeUpdate('withdraw', { args: [30] }), 70);
      await assert.rejects(current.executeUpdate('withdraw', { args: [1000] }), (e) => {
        assert.equal(e.cause.message, 'only 70 left');
        return true;
      });
      await current.signal('close');
      assert.equal(await first.result(), 70); // follows the runs
      await replayed(current);
    });
    await check('children and timers', () => result([285, 'Unlucky'], 'fanOut', 10));
    await check('local activities and patches', () => result([3, true], 'markers'));
    await check('cancel', async () => {
      const handle = await start('cancellable');
      await pause(200);
      await handle.cancel();
      await assert.rejects(handle.result(), (e) => {
        assert.equal(e.cause.constructor.name, 'CancelledFailure');
        return true;
      });
      await replayed(handle);
    });
  });
  await connection.close();
  await client.connection.close();

  if (process.env.DEV_SERVER) {
    await check('dev server', async () => {
      const executable = { type: 'existing-path', path: process.env.DEV_SERVER };
      const environment = await TestWorkflowEnvironment.createLocal({ server: { executable } });
      try {
        const other = await Worker.create({
          connection: environment.nativeConnection,
          taskQueue,
          workflowBundle,
          activities,
        });
        const squared = await other.runUntil(
          environment.client.workflow.execute('square', { taskQueue, workflowId: 'square', args: [7] })
        );
        assert.equal(squared, 49);
      } finally {
        await environment.teardown();
      }
    });
  }
  process.exit(failed ? 1 : 0);
}

main().catch((e) => {
  console.log(`FAIL ${e.stack}`);
  process.exit(1);
});

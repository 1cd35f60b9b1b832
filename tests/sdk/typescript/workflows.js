'use strict';

const wf = require('@temporalio/workflow');

const options = { startToCloseTimeout: '10s', heartbeatTimeout: '5s', retry: { initialInterval: '10ms' } };
const { flaky, declined, add, hold } = wf.proxyActivities({
  ...options,
  cancellationType: 'WAIT_CANCELLATION_COMPLETED',
});
const local = wf.proxyLocalActivities({ startToCloseTimeout: '5s' });

exports.retrying = async function retrying() {
  const attempt = await flaky();
  try {
    await declined();
  } catch (e) {
    return [attempt, e.cause.type, e.cause.message, ...e.cause.details];
  }
};

const deposit = wf.defineSignal('deposit');
const close = wf.defineSignal('close');
const balanceQuery = wf.defineQuery('balance');
const withdraw = wf.defineUpdate('withdraw');

// Changed by signals and updates until it is closed; keeps what it has through continue-as-new.
exports.account = async function account(balance, runs) {
  let closed = false;
  let seen = 0;
  wf.setHandler(deposit, (amount) => {
    balance += amount;
    seen++;
  });
  wf.setHandler(close, () => {
    closed = true;
  });
  wf.setHandler(balanceQuery, () => balance);
  wf.setHandler(
    withdraw,
    async (amount) => {
      balance = await add(balance, -amount);
      return balance;
    },
    {
      validator: (amount) => {
        if (amount > balance) throw new Error(`only ${balance} left`);
      },
    }
  );
  await wf.condition(() => closed || (seen === 2 && runs > 1));
  if (closed) return balance;
  await wf.continueAsNew(balance, runs - 1);
};

exports.square = async function square(n) {
  await wf.sleep(20);
  if (n === 13) throw wf.ApplicationFailure.create({ message: 'thirteen', type: 'Unlucky' });
  return n * n;
};

exports.fanOut = async function fanOut(n) {
  const squares = await Promise.all([...Array(n).keys()].map((i) => wf.executeChild('square', { args: [i] })));
  try {
    await wf.executeChild('square', { args: [13] });
  } catch (e) {
    return [squares.reduce((a, b) => a + b, 0), e.cause.type];
  }
};

exports.markers = async function markers() {
  const sum = await local.add(1, 2);
  const patched = wf.patched('change');
  await wf.sleep(20);
  return [sum, patched];
};

exports.cancellable = async function cancellable() {
  try {
    await hold();
  } catch (e) {
    if (!wf.isCancellation(e)) throw e;
    await wf.CancellationScope.nonCancellable(() => add(1, 1));
    throw e;
  }
};

// Rows to train on, and what checks say about refusals.
import assert from 'node:assert/strict';

const row = (n) => ({
  messages: [
    { role: 'user', content: `say ${n}` },
    { role: 'assistant', content: `${n}` },
  ],
});

export const lines = (count) => Buffer.from(Array.from({ length: count }, (_, n) => JSON.stringify(row(n)) + '\n').join(''));

export async function collect(pages) {
  const found = [];
  for await (const one of pages) found.push(one);
  return found;
}

// The package raises the right class, and finds all four facts in the reply.
export async function refused(promise, kind, status) {
  const error = await promise.then(
    () => assert.fail('nothing was refused'),
    (error) => error,
  );
  assert(error instanceof kind, `${error?.constructor?.name}: ${error?.message}`);
  assert.equal(error.status, status);
  assert.match(error.requestID, /^req_/);
  for (const name of ['message', 'type', 'param', 'code']) assert(name in error.error, name);
  return error;
}

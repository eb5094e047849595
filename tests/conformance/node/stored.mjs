// Stored completions: item 64.
import OpenAI from 'openai';
import assert from 'node:assert/strict';
import { collect, refused } from './rows.mjs';

export async function item_64(client, facts) {
  const { completions } = client.chat;
  const asked = { model: facts.model, messages: [{ role: 'user', content: 'Hello' }], max_tokens: 5 };
  const made = [];
  for (const place of ['a', 'b']) {
    made.push((await completions.create({ ...asked, store: true, metadata: { kind: 'node 64', place } })).id);
  }
  const unkept = await completions.create(asked);
  await refused(completions.retrieve(unkept.id), OpenAI.NotFoundError, 404);

  const ids = async (more) => (await collect(completions.list({ limit: 1, ...more }))).map((one) => one.id);
  assert.deepEqual(await ids({ metadata: { kind: 'node 64' } }), made);
  assert.deepEqual(await ids({ metadata: { kind: 'node 64', place: 'b' } }), [made[1]]);
  const messages = await collect(completions.messages.list(made[0]));
  assert.equal(messages[0].id, `${made[0]}-0`);
  assert.deepEqual([messages[0].role, messages[0].content], ['user', 'Hello']);

  const updated = await completions.update(made[0], { metadata: { place: 'c' } });
  assert.deepEqual(updated.metadata, { place: 'c' });
  assert.deepEqual((await completions.retrieve(made[0])).metadata, { place: 'c' });
  const gone = await completions.delete(made[0]);
  assert.deepEqual([gone.object, gone.id, gone.deleted], ['chat.completion.deleted', made[0], true]);
  await refused(completions.retrieve(made[0]), OpenAI.NotFoundError, 404);
}

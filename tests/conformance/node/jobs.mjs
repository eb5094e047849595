// Jobs: items 15, 16, 18, 19, 23 to 25, 31, 32, 38, and one from upload to answer: 26, 34, 35, 39, 43, 44, 52, 53.
import OpenAI, { toFile } from 'openai';
import assert from 'node:assert/strict';
import { items_52_53 } from './models.mjs';
import { collect, lines, refused } from './rows.mjs';

const upload = async (client, count = 10) =>
  (await client.files.create({ file: await toFile(lines(count), 'rows.jsonl'), purpose: 'fine-tune' })).id;

async function create(client, facts, more = {}) {
  const training_file = more.training_file ?? (await upload(client));
  return client.fineTuning.jobs.create({ model: facts.model, training_file, ...more });
}

export async function item_15(client, facts) {
  const job = await create(client, facts);
  assert.match(job.id, /^ftjob-/);
  assert.equal(job.object, 'fine_tuning.job');
  assert(Number.isInteger(job.seed) && job.seed >= 0 && job.seed <= 2147483647);
  assert.deepEqual(job.result_files, []);
  for (const name of ['fine_tuned_model', 'finished_at', 'trained_tokens', 'error']) assert.equal(job[name], null);
  assert.equal((await client.fineTuning.jobs.retrieve(job.id)).id, job.id);
}

export async function item_16(client, facts) {
  const training_file = await upload(client);
  const seeds = [];
  for (let n = 0; n < 2; n++) seeds.push((await create(client, facts, { training_file })).seed);
  assert.notEqual(seeds[0], seeds[1]);
  assert.equal((await create(client, facts, { training_file, seed: 42 })).seed, 42);
}

export async function item_18(client, facts) {
  const job = await create(client, facts, { hyperparameters: { n_epochs: 2 } });
  assert.equal(job.method.type, 'supervised');
  assert.equal(job.method.supervised.hyperparameters.n_epochs, 2);
  assert.equal(job.hyperparameters.n_epochs, 2);
}

export async function item_19(client, facts) {
  const training_file = await upload(client);
  for (const [name, value] of [['n_epochs', 0], ['n_epochs', 51], ['batch_size', 257], ['learning_rate_multiplier', 0]]) {
    const method = { type: 'supervised', supervised: { hyperparameters: { [name]: value } } };
    const error = await refused(create(client, facts, { training_file, method }), OpenAI.BadRequestError, 400);
    assert(error.param?.endsWith(name), `${name}: ${error.param}`);
  }
}

export async function item_23(client, facts) {
  const training_file = await upload(client);
  const made = [];
  for (const place of ['a', 'b', 'a']) {
    made.unshift((await create(client, facts, { training_file, metadata: { place, kind: 'node 23' } })).id);
  }
  const ids = async (more) => (await collect(client.fineTuning.jobs.list(more))).map((job) => job.id);
  assert.deepEqual(await ids({ metadata: { kind: 'node 23' } }), made);
  assert.deepEqual(await ids({ metadata: { kind: 'node 23', place: 'a' } }), [made[0], made[2]]);
}

export async function item_24(client, facts) {
  const training_file = await upload(client);
  const metadata = { kind: 'node 24' };
  for (let n = 0; n < 45; n++) await create(client, facts, { training_file, metadata });
  let requests = 0;
  const counting = client.withOptions({ fetch: (url, init) => (requests++, fetch(url, init)) });
  const ids = (await collect(counting.fineTuning.jobs.list({ limit: 20, metadata }))).map((job) => job.id);
  assert.equal(new Set(ids).size, 45);
  assert.equal(requests, 3);
}

export async function item_25(client) {
  const { jobs } = client.fineTuning;
  const unknown = 'ftjob-000000000000000000000000';
  for (const ask of [
    () => jobs.retrieve(unknown),
    () => jobs.cancel(unknown),
    () => jobs.pause(unknown),
    () => jobs.listEvents(unknown),
    () => jobs.checkpoints.list(unknown),
  ]) {
    const error = await refused(ask(), OpenAI.NotFoundError, 404);
    assert.equal(error.code, 'fine_tune_not_found');
  }
}

export async function item_31_32(client, facts) {
  const job = await create(client, facts);
  assert.equal((await client.fineTuning.jobs.cancel(job.id)).status, 'cancelled');
  let requests = 0;
  const eager = client.withOptions({ maxRetries: 2, fetch: (url, init) => (requests++, fetch(url, init)) });
  await refused(eager.fineTuning.jobs.cancel(job.id), OpenAI.BadRequestError, 400);
  assert.equal(requests, 1);
}

export async function item_38(client, facts) {
  const job = await create(client, facts);
  await client.fineTuning.jobs.cancel(job.id);
  const all = (await client.fineTuning.jobs.listEvents(job.id)).data;
  assert(all.length >= 3);
  assert.match(all.at(-1).message, /^Created fine-tuning job: ftjob-/);
  for (const event of all) assert.equal(event.object, 'fine_tuning.job.event');
  const paged = await collect(client.fineTuning.jobs.listEvents(job.id, { limit: 1 }));
  assert.deepEqual(paged, all);
}

export async function from_upload_to_answer(client, facts) {
  const hyperparameters = { n_epochs: 2, batch_size: 5 };
  const method = { type: 'supervised', supervised: { hyperparameters } };
  let job = await create(client, facts, { training_file: await upload(client, 20), method, suffix: 'node', tunesmith: facts.settings });
  const seen = [];
  while (!['succeeded', 'failed', 'cancelled'].includes(job.status)) {
    if (seen.at(-1) !== job.status) seen.push(job.status);
    await new Promise((resolve) => setTimeout(resolve, 200));
    job = await client.fineTuning.jobs.retrieve(job.id);
  }
  assert.equal(job.status, 'succeeded', JSON.stringify(job.error));
  const order = ['validating_files', 'queued', 'running'];
  assert.deepEqual(seen, order.filter((status) => seen.includes(status)));
  assert(job.finished_at && job.trained_tokens > 0);

  const [result] = job.result_files;
  const csv = await (await client.files.content(result)).text();
  assert.match(csv, /^step,train_loss/);
  assert.equal((await client.files.retrieve(result)).purpose, 'fine-tune-results');

  const messages = (await collect(client.fineTuning.jobs.listEvents(job.id))).map((event) => event.message).reverse();
  assert.match(messages[0], /^Created fine-tuning job/);
  assert.match(messages.at(-1), /successfully completed/);
  const page = await client.fineTuning.jobs.checkpoints.list(job.id);
  assert.equal(typeof page.has_more, 'boolean');
  const names = page.data.map((checkpoint) => checkpoint.fine_tuned_model_checkpoint);

  const model = job.fine_tuned_model;
  assert.match(model, /^ft:.*:node:/);
  for (const name of [model, ...names]) {
    const settings = { model: name, messages: [{ role: 'user', content: 'say 1' }], max_tokens: 5 };
    const reply = await client.chat.completions.create(settings);
    assert.equal(reply.choices.length, 1);
  }
  assert((await collect(client.models.list())).some((one) => one.id === model));
  await items_52_53(client, model, facts);
  assert.deepEqual(await client.models.delete(model), { id: model, object: 'model', deleted: true });
  await refused(client.models.delete(model), OpenAI.NotFoundError, 404);
}

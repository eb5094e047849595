// Files and uploads: items 1, 3, 4, 7, 8, 9, 11, 12, 13.
import OpenAI, { toFile } from 'openai';
import assert from 'node:assert/strict';
import { createHash, randomBytes } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { collect, lines, refused } from './rows.mjs';

const TEN = lines(10);
const upload = async (client, more = {}) =>
  client.files.create({ file: await toFile(TEN, 'birds.jsonl'), purpose: 'fine-tune', ...more });

async function inFile(content, name, use) {
  const folder = await mkdtemp(join(tmpdir(), 'check-'));
  try {
    await writeFile(join(folder, name), content);
    return await use(join(folder, name));
  } finally {
    await rm(folder, { recursive: true });
  }
}

async function content(client, id) {
  const reply = await client.files.content(id);
  return Buffer.from(await reply.arrayBuffer());
}

export async function item_01(client) {
  const made = await upload(client);
  assert.match(made.id, /^file-/);
  assert.deepEqual([made.object, made.status, made.bytes, made.purpose], ['file', 'processed', TEN.length, 'fine-tune']);
  assert.deepEqual(await client.files.retrieve(made.id), made);
  const ready = await client.files.waitForProcessing(made.id, { pollInterval: 10 });
  assert.equal(ready.status, 'processed');
}

export async function item_03(client) {
  // Large enough that it can't go out in one piece.
  const large = lines(40_000);
  let headers;
  const fetching = (url, init) => {
    headers = new Headers(init.headers);
    return fetch(url, init);
  };
  const made = await inFile(large, 'birds.jsonl', (path) =>
    client.withOptions({ fetch: fetching }).files.create({ file: createReadStream(path), purpose: 'fine-tune' }),
  );
  assert.equal(headers.get('content-length'), null);
  assert.equal(made.bytes, large.length);
  assert(large.equals(await content(client, made.id)));
}

export async function item_04(client) {
  const made = await upload(client, { expires_after: { anchor: 'created_at', seconds: 3600 } });
  assert.equal(made.expires_at, made.created_at + 3600);
  const error = await refused(
    upload(client, { expires_after: { anchor: 'created_at', seconds: 3599 } }),
    OpenAI.BadRequestError,
    400,
  );
  assert.equal(error.param, 'expires_after[seconds]');
}

export async function item_07(client) {
  const made = [];
  for (let n = 0; n < 5; n++) made.unshift((await upload(client, { purpose: 'evals' })).id);
  const ids = async (more) => (await collect(client.files.list({ purpose: 'evals', ...more }))).map((one) => one.id);
  assert.deepEqual(await ids({ limit: 2 }), made);
  assert.deepEqual(await ids({ limit: 2, order: 'asc' }), made.toReversed());
}

export async function item_08(client) {
  const binary = randomBytes(300_000);
  const made = await client.files.create({ file: await toFile(binary, 'a.bin'), purpose: 'user_data' });
  assert(binary.equals(await content(client, made.id)));
}

export async function item_09(client) {
  const made = await upload(client);
  assert.deepEqual(await client.files.delete(made.id), { id: made.id, object: 'file', deleted: true });
  const error = await refused(client.files.retrieve(made.id), OpenAI.NotFoundError, 404);
  assert.match(error.message, new RegExp(`No such File object: ${made.id}`));
}

const begin = (client, bytes = TEN.length) =>
  client.uploads.create({ bytes, filename: 'birds.jsonl', mime_type: 'application/jsonl', purpose: 'fine-tune' });

export async function item_11(client) {
  const begun = await begin(client);
  assert.deepEqual([begun.status, begun.object], ['pending', 'upload']);
  const middle = 100;
  const [second, first] = await Promise.all(
    [TEN.subarray(middle), TEN.subarray(0, middle)].map(async (piece) =>
      client.uploads.parts.create(begun.id, { data: await toFile(piece, 'part') }),
    ),
  );
  const done = await client.uploads.complete(begun.id, { part_ids: [first.id, second.id] });
  assert.deepEqual([done.status, done.file.bytes], ['completed', TEN.length]);
  assert(TEN.equals(await content(client, done.file.id)));
}

export async function item_12(client) {
  const begun = await begin(client);
  const part = await client.uploads.parts.create(begun.id, { data: await toFile(TEN, 'part') });
  const complete = (md5) => client.uploads.complete(begun.id, { part_ids: [part.id], md5 });
  await refused(complete('0'.repeat(32)), OpenAI.BadRequestError, 400);
  const done = await complete(createHash('md5').update(TEN).digest('hex'));
  assert.equal(done.status, 'completed');
  const short = await begin(client, TEN.length + 1);
  const only = await client.uploads.parts.create(short.id, { data: await toFile(TEN, 'part') });
  await refused(client.uploads.complete(short.id, { part_ids: [only.id] }), OpenAI.BadRequestError, 400);
}

export async function item_13(client) {
  const begun = await begin(client);
  assert.equal((await client.uploads.cancel(begun.id)).status, 'cancelled');
  const late = client.uploads.parts.create(begun.id, { data: await toFile(TEN, 'part') });
  await refused(late, OpenAI.BadRequestError, 400);
}

// Errors, headers, repetitions: items 32, 69 to 73, 75.
import OpenAI, { toFile } from 'openai';
import assert from 'node:assert/strict';
import { lines, refused } from './rows.mjs';

// The same client, but its requests are counted and something may happen before each.
function counted(client, before = async () => {}) {
  const statuses = [];
  const fetching = async (url, init) => {
    await before();
    const reply = await fetch(url, init);
    statuses.push(reply.status);
    return reply;
  };
  return [client.withOptions({ fetch: fetching, maxRetries: 2 }), statuses];
}

export async function item_69(client) {
  await refused(client.get('/nowhere'), OpenAI.NotFoundError, 404);
  await refused(client.patch('/files'), OpenAI.APIError, 405);
  await refused(client.get('/files?limit=x'), OpenAI.BadRequestError, 400);
  const headers = { 'content-type': 'application/json' };
  await refused(client.post('/uploads', { body: '{', headers }), OpenAI.BadRequestError, 400);
}

export async function item_70(client) {
  const { data, response, request_id } = await client.models.list().withResponse();
  assert(Array.isArray(data.data));
  assert.match(request_id, /^req_/);
  assert.equal(response.headers.get('content-type'), 'application/json');
}

// The server's key may ask once in `facts.most_ms`; what is left is used up before each request of the client's.
export async function item_71_429(client, facts) {
  const drain = async () => {
    for (;;) {
      const reply = await fetch(`${client.baseURL}/models`, { headers: { authorization: `Bearer ${client.apiKey}` } });
      await reply.arrayBuffer();
      if (reply.status === 429 && Number(reply.headers.get('retry-after-ms')) > 0.8 * facts.most_ms) return;
    }
  };
  const [eager, statuses] = counted(client, drain);
  const error = await refused(eager.models.list(), OpenAI.RateLimitError, 429);
  assert(Number(error.headers.get('retry-after-ms')) <= facts.most_ms);
  assert.deepEqual(statuses, [429, 429, 429]);
}

export async function item_71_500(client, facts) {
  const [eager, statuses] = counted(client);
  const messages = [{ role: 'user', content: 'Hello' }];
  const broken = eager.chat.completions.create({ model: facts.broken_model, messages });
  await refused(broken, OpenAI.InternalServerError, 500);
  assert.deepEqual(statuses, [500]);
}

export async function item_72(client) {
  const page = await client.files.list({ limit: 1 });
  assert.equal(typeof page.has_more, 'boolean');
  const error = await refused(client.files.list({ after: 'file-none' }), OpenAI.BadRequestError, 400);
  assert.equal(error.param, 'after');
}

export async function item_73(client) {
  const stranger = client.withOptions({ apiKey: 'sk-wrong' });
  const error = await refused(stranger.models.list(), OpenAI.AuthenticationError, 401);
  assert.equal(error.code, 'invalid_api_key');
  const member = client.withOptions({ organization: 'org-elsewhere', project: 'proj_default' });
  assert((await member.models.list()).data);
}

// The first connection is cut once the server has answered; the client repeats by itself.
export async function item_75(client) {
  const [eager] = counted(client);
  const file = await toFile(lines(10), 'lost.jsonl');
  const headers = { 'Idempotency-Key': 'lost-in-node' };
  const { data, response } = await eager.files.create({ file, purpose: 'fine-tune' }, { headers }).withResponse();
  assert.equal(response.headers.get('idempotent-replayed'), 'true');
  assert.match(data.id, /^file-/);
}

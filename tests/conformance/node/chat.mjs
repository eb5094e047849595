// Chat: items 54 to 62. `facts.model` is a tiny model whose words mean nothing, so forms are what is looked at.
import OpenAI from 'openai';
import assert from 'node:assert/strict';
import { zodFunction, zodResponseFormat } from 'openai/helpers/zod';
import { z } from 'zod';
import { collect, refused } from './rows.mjs';

const HELLO = [{ role: 'user', content: 'Hello' }];
const BOOK = z.object({ people: z.enum(['three', 'four']), at: z.enum(['seven', 'eight']) });
const asked = (facts, more) => ({ model: facts.model, messages: HELLO, max_tokens: 20, seed: 1, ...more });

export async function item_54(client, facts) {
  const three = await client.chat.completions.create(asked(facts, { n: 3 }));
  assert.deepEqual(three.choices.map((choice) => choice.index), [0, 1, 2]);
  for (const { message } of three.choices) assert.equal(message.role, 'assistant');
  const all = three.usage.prompt_tokens + three.usage.completion_tokens;
  assert.equal(three.usage.total_tokens, all);
  const whole = three.choices[0].message.content;
  const stop = whole.slice(3, 5);
  const cut = await client.chat.completions.create(asked(facts, { n: 3, stop: [stop, 'x', 'y', 'z'] }));
  assert.equal(cut.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
  const five = client.chat.completions.create(asked(facts, { stop: ['a', 'b', 'c', 'd', 'e'] }));
  await refused(five, OpenAI.BadRequestError, 400);
}

export async function item_55(client, facts) {
  const settings = asked(facts, { temperature: 0 });
  const [one, two] = [await client.chat.completions.create(settings), await client.chat.completions.create(settings)];
  assert.equal(one.choices[0].message.content, two.choices[0].message.content);
}

export async function item_56(client, facts) {
  const reply = await client.chat.completions.create(asked(facts, { logprobs: true, top_logprobs: 5 }));
  const tokens = reply.choices[0].logprobs.content;
  assert(tokens.length > 0);
  for (const token of tokens) assert.equal(token.top_logprobs.length, 5);
  const text = Buffer.from(tokens.flatMap((token) => token.bytes)).toString('utf8');
  assert.equal(text, reply.choices[0].message.content);
}

export async function item_57(client, facts) {
  const response_format = zodResponseFormat(BOOK, 'booking');
  const done = await client.chat.completions.parse(asked(facts, { response_format, max_tokens: 300 }));
  BOOK.parse(done.choices[0].message.parsed);
}

const TOOL = zodFunction({ name: 'book', parameters: BOOK });
const LEAVE = { type: 'function', function: { name: 'leave' } };

export async function item_58(client, facts) {
  const call = (tool_choice) =>
    client.chat.completions.create(
      asked(facts, { tools: [TOOL, LEAVE], tool_choice, parallel_tool_calls: false, max_tokens: 300 }),
    );
  const required = await call('required');
  assert.equal(required.choices[0].finish_reason, 'tool_calls');
  assert.equal(required.choices[0].message.tool_calls.length, 1);
  const named = await call({ type: 'function', function: { name: 'book' } });
  const [{ function: booked }] = named.choices[0].message.tool_calls;
  assert.equal(booked.name, 'book');
  BOOK.parse(JSON.parse(booked.arguments));
  for (const none of [await call('none'), await call('auto')]) assert(none.choices[0].message);
  assert.equal((await call('none')).choices[0].message.tool_calls, undefined);
}

export async function item_59(client, facts) {
  const settings = { tools: [TOOL], tool_choice: 'required', parallel_tool_calls: false, max_tokens: 300 };
  const { message } = (await client.chat.completions.create(asked(facts, settings))).choices[0];
  const result = { role: 'tool', tool_call_id: message.tool_calls[0].id, content: '"done"' };
  const back = await client.chat.completions.create(
    asked(facts, { messages: [...HELLO, message, result], tools: [TOOL], max_tokens: 5 }),
  );
  assert.equal(back.choices.length, 1);
  const unanswered = asked(facts, { messages: [...HELLO, message, ...HELLO], tools: [TOOL] });
  await refused(client.chat.completions.create(unanswered), OpenAI.BadRequestError, 400);
}

export async function item_60(client, facts) {
  const settings = asked(facts, { temperature: 0 });
  const whole = await client.chat.completions.create(settings);
  const chunks = await collect(await client.chat.completions.create({ ...settings, stream: true }));
  const text = chunks.map((chunk) => chunk.choices[0].delta.content ?? '').join('');
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(new Set(chunks.map((chunk) => `${chunk.id} ${chunk.created}`)).size, 1);
}

export async function item_61(client, facts) {
  const stream = client.chat.completions.stream(
    asked(facts, {
      tools: [TOOL],
      tool_choice: 'required',
      parallel_tool_calls: false,
      max_tokens: 300,
      stream_options: { include_usage: true },
    }),
  );
  const done = await stream.finalChatCompletion();
  const { message } = done.choices[0];
  assert.equal(message.role, 'assistant');
  const [call] = message.tool_calls;
  BOOK.parse(call.function.parsed_arguments ?? JSON.parse(call.function.arguments));
  assert(done.usage.total_tokens > 0);
}

export async function item_62(client, facts) {
  const counted = asked(facts, { stream: true, stream_options: { include_usage: true } });
  const chunks = await collect(await client.chat.completions.create(counted));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert(last.usage.total_tokens > 0);
  for (const chunk of chunks) assert.equal(chunk.usage, null);
  const plain = await collect(await client.chat.completions.create(asked(facts, { stream: true })));
  for (const chunk of plain) assert.equal(chunk.choices.length, 1);
}

export async function item_63(client, facts) {
  // Whoever leaves gets no error, and the server goes on with others.
  const stream = await client.chat.completions.create(asked(facts, { stream: true, max_tokens: 900 }));
  for await (const chunk of stream) {
    assert(chunk.id);
    break;
  }
  assert(stream.controller.signal.aborted);
  assert((await client.chat.completions.create(asked(facts))).choices.length);
}

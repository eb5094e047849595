// Run one check of one file: `node check.mjs files.mjs item_03`. What it needs to know comes as JSON in CHECK_FACTS.
import OpenAI from 'openai';

const [file, name] = process.argv.slice(2);
const facts = JSON.parse(process.env.CHECK_FACTS ?? '{}');
const checks = await import(new URL(file, import.meta.url));
// The address and the key come from the environment, as the package reads them itself.
await checks[name](new OpenAI({ maxRetries: 0 }), facts);

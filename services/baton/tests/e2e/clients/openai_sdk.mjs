// OpenAI's Node client against a gateway whose pipeline is the sim engine. Any assertion that fails ends it with an error.
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';

// The SDK lies where the test has put it, not beside this file.
const OpenAI = createRequire(process.env.SDK + '/')('openai').default;
const client = new OpenAI({ baseURL: process.env.GATEWAY + '/v1', apiKey: process.env.KEY, maxRetries: 0 });
const ask = { model: 'sim', messages: [{ role: 'user', content: 'Tell me a story.' }], max_tokens: 30, seed: 7 };

const models = await client.models.list();
assert.deepEqual(models.data.map((model) => model.id), ['sim']);

const whole = await client.chat.completions.create(ask);
assert.equal(whole.usage.completion_tokens, 30);
let text = '';
let usage;
for await (const chunk of await client.chat.completions.create({ ...ask, stream: true, stream_options: { include_usage: true } })) {
  text += chunk.choices[0]?.delta?.content ?? '';
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.equal(usage.total_tokens, whole.usage.total_tokens);
const runner = client.chat.completions.stream({ ...ask, n: 2, stop: ' ' });
assert.equal((await runner.finalChatCompletion()).choices.length, 2);

const old = await client.completions.create({ model: 'sim', prompt: 'Once', max_tokens: 8, echo: false });
assert.equal(old.choices[0].finish_reason, 'length');

await assert.rejects(client.chat.completions.create({ ...ask, tools: [{ type: 'function', function: { name: 'f' } }] }), {
  status: 400, param: 'tools',
});
await assert.rejects(client.chat.completions.create({ ...ask, model: 'none' }), { status: 404, code: 'model_not_found' });
console.log('all is well');

// The SDK of OpenAI for Node.

import OpenAI from 'openai'
import { ASKED, MODEL, PICTURE, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, told, weather } from '../driving.mjs'

const USER = { role: 'user', content: QUESTION }
const PERSON = { type: 'json_schema', json_schema: { name: 'Person', strict: true, schema: SCHEMA } }

const client = ({ baseURL, key }) => new OpenAI({ baseURL, apiKey: key })
const ask = (at, messages = [USER], more = {}, options = {}) =>
  client(at).chat.completions.create({ model: MODEL, messages, ...more }, options)

// All chunks that came, and the error that ended them, if one did; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const chunks = []
  let ending = {}
  try {
    for await (const chunk of await ask(at, [USER], { stream: true, ...more })) {
      chunks.push(chunk)
      if (leaveAt && chunk.choices[0]?.delta.content?.includes(leaveAt)) break
    }
  } catch (error) {
    ending = told(error)
  }
  return { text: chunks.map(chunk => chunk.choices[0]?.delta.content ?? '').join(''), chunks, ...ending }
}

const resultOf = call => ({ role: 'tool', tool_call_id: call.id, content: weather(JSON.parse(call.function.arguments)) })

async function tools(at) {
  const first = await ask(at, [USER], { tools: [TOOL] })
  const said = first.choices[0].message
  return [first, await ask(at, [USER, said, ...said.tool_calls.map(resultOf)], { tools: [TOOL] })]
}

// By the SDK's own helper, which puts the calls together.
async function streamedTools(at) {
  const running = client(at).chat.completions.stream({ model: MODEL, messages: [USER], tools: [TOOL] })
  const said = await running.finalMessage()
  return [said, await ask(at, [USER, said, ...said.tool_calls.map(resultOf)], { tools: [TOOL] })]
}

async function refused(at) {
  try {
    return await ask(at)
  } catch (error) {
    return told(error)
  }
}

async function models(at) {
  const names = []
  for await (const model of client(at).models.list()) names.push(model)
  return names
}

drive(
  ['openai'],
  {
    plain: at => ask(at),
    stream,
    'stream usage': at => stream(at, { stream_options: { include_usage: true } }),
    tool: tools,
    'two tools': tools,
    'streamed tools': streamedTools,
    structured: at => ask(at, [{ role: 'user', content: ASKED.wanted }], { response_format: PERSON }),
    vision: at => ask(at, [{ role: 'user', content: [{ type: 'text', text: QUESTION }, { type: 'image_url', image_url: { url: PICTURE } }] }]),
    'two answers': at => ask(at, [USER], { n: 2 }),
    logprobs: at => ask(at, [USER], { logprobs: true, top_logprobs: 2 }),
    developer: at => ask(at, [{ role: 'developer', content: ASKED.instructions }, USER]),
    'too long': refused,
    busy: at => ask(at),
    cut: stream,
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(content => ask(at, [{ role: 'user', content }]))),
    packed: at => ask(at),
    'packed stream': at => stream(at),
    'more fields': at => ask(at, [USER], { top_k: 5, min_p: null, provider: { order: ['a', 'b'] } }),
    'more query': at => ask(at, [USER], {}, { query: { 'api-version': '2026-01-01' } }),
    cookies: async at => [await ask(at), await ask(at)],
    embeddings: at => client(at).embeddings.create({ model: ASKED.embedding_model, input: [QUESTION, 'Hi.'] }),
    models,
  },
  {},
)

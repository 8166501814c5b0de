// The AI SDK of Vercel with its provider for Anthropic.

import { createAnthropic } from '@ai-sdk/anthropic'
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai'
import { ASKED, CLAUDE, DOCUMENT, LARGE_PICTURE, MORE_HEADERS, PICTURE, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, told, weather } from '../driving.mjs'

const anthropic = ({ baseURL, key }) => createAnthropic({ baseURL, apiKey: key })
const asked = (at, { model = CLAUDE, ...more } = {}) => ({ model: anthropic(at)(model), prompt: QUESTION, ...more })

// What a program sees of a result; ids that the SDK makes by chance aside.
const seen = ({ text, reasoningText, usage, finishReason, toolCalls, toolResults, providerMetadata, response }) =>
  ({ text, reasoningText, usage, finishReason, toolCalls, toolResults, providerMetadata, id: response?.id, model: response?.modelId })

const ask = async (at, more) => seen(await generateText(asked(at, more)))

// The parts as they came; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const parts = []
  let ending = {}
  const leaving = new AbortController()
  const result = streamText({ ...asked(at, more), abortSignal: leaving.signal, onError: () => {} })
  try {
    for await (const part of result.fullStream) {
      if (part.type === 'error') ending = told(part.error)
      else parts.push({ type: part.type, text: part.text, toolName: part.toolName, input: part.input, output: part.output, finishReason: part.finishReason, usage: part.totalUsage, cited: part.providerMetadata?.anthropic?.citedText })
      if (leaveAt && part.text?.includes(leaveAt)) {
        leaving.abort()
        break
      }
    }
  } catch (error) {
    ending = told(error)
  }
  return { text: parts.map(part => part.type === 'text-delta' ? part.text : '').join(''), parts, ...ending }
}

const TOOLS = {
  tools: { weather: tool({ description: TOOL.function.description, inputSchema: jsonSchema(TOOL.function.parameters), execute: weather }) },
  stopWhen: stepCountIs(3),
}
const options = values => ({ providerOptions: { anthropic: values } })
const MARK = options({ cacheControl: { type: 'ephemeral' } })
const THINKING = options({ thinking: { type: 'enabled', budgetTokens: 1024 } })
const HOURS = {
  type: 'file', data: Buffer.from('Opens at nine. Closes at ten.'), mediaType: 'text/plain', filename: 'Hours',
  ...options({ citations: { enabled: true }, title: 'Hours' }),
}

async function tools(at, more = {}) {
  const result = await generateText(asked(at, { ...TOOLS, ...more }))
  return { text: result.text, steps: result.steps.map(seen) }
}

async function structured(at) {
  const output = Output.object({ name: 'Person', schema: jsonSchema(SCHEMA) })
  return (await generateText(asked(at, { prompt: ASKED.wanted, output }))).output
}

const withPart = part => ({ prompt: undefined, messages: [{ role: 'user', content: [part, { type: 'text', text: QUESTION }] }] })

const cached = at => ask(at, {
  prompt: undefined,
  system: { role: 'system', content: ASKED.instructions, ...MARK },
  messages: [{ role: 'user', content: [{ type: 'text', text: QUESTION, ...MARK }] }],
})

const refused = call => async at => {
  try {
    return await call(at)
  } catch (error) {
    return told(error)
  }
}

drive(
  ['ai', '@ai-sdk/anthropic'],
  {
    plain: ask,
    stream,
    system: at => ask(at, { system: ASKED.instructions }),
    cached,
    tool: tools,
    'two tools': tools,
    'streamed tools': at => stream(at, TOOLS),
    structured,
    vision: at => ask(at, withPart({ type: 'image', image: PICTURE })),
    document: at => ask(at, withPart({ type: 'file', data: DOCUMENT, mediaType: 'application/pdf' })),
    citations: at => stream(at, withPart(HOURS)),
    thinking: at => tools(at, THINKING),
    'streamed thinking': at => stream(at, THINKING),
    'web search': at => ask(at, { tools: { web_search: anthropic(at).tools.webSearch_20250305({ maxUses: 2 }) } }),
    'max tokens': at => stream(at, { maxOutputTokens: 16 }),
    'stop sequence': at => ask(at, { stopSequences: ['NINE'] }),
    refusal: ask,
    beta: at => ask(at, { headers: { 'anthropic-beta': 'context-1m-2025-08-07' } }),
    'too long': refused(ask),
    unauthorized: refused(ask),
    missing: refused(at => ask(at, { model: 'claude-3-opus-20240229' })),
    busy: ask,
    overloaded: ask,
    down: ask,
    'error event': stream,
    cut: stream,
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(prompt => ask(at, { prompt }))),
    packed: ask,
    'packed stream': at => stream(at),
    'more headers': at => ask(at, { headers: MORE_HEADERS }),
    cookies: async at => [await ask(at), await ask(at)],
    large: at => ask(at, withPart({ type: 'image', image: LARGE_PICTURE })),
  },
  {
    count: 'does not count tokens',
    batch: 'has no batches',
    models: 'does not list models',
    'more fields': 'sends no fields that it does not know',
    'more query': 'has no setting for it',
  },
)

// The AI SDK of Vercel with its provider for OpenAI, which speaks Responses.

import { createOpenAI } from '@ai-sdk/openai'
import { generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai'
import {
  ASKED, DOCUMENT, LARGE_PICTURE, MODEL, MORE_HEADERS, PICTURE, QUESTION, QUESTIONS, REASONING_MODEL, SCHEMA, TOOL, drive, told, weather,
} from '../driving.mjs'

const openai = ({ baseURL, key }) => createOpenAI({ baseURL, apiKey: key })
const asked = (at, { model = MODEL, ...more } = {}) => ({ model: openai(at).responses(model), prompt: QUESTION, ...more })

// What a program sees of a result; ids that the SDK makes by chance aside.
const seen = ({ text, reasoningText, sources, usage, finishReason, toolCalls, toolResults, providerMetadata, response }) =>
  ({ text, reasoningText, sources: sources?.map(({ url, title }) => ({ url, title })), usage, finishReason, toolCalls, toolResults, providerMetadata, id: response?.id, model: response?.modelId })

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
      else parts.push({ type: part.type, text: part.text, toolName: part.toolName, input: part.input, output: part.output, finishReason: part.finishReason, usage: part.totalUsage })
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
const options = values => ({ providerOptions: { openai: values } })
const SEALED = { model: REASONING_MODEL, ...options({ store: false, include: ['reasoning.encrypted_content'], reasoningSummary: 'auto', reasoningEffort: 'low' }) }
const TO_DEVELOPER = { model: REASONING_MODEL, system: ASKED.instructions }

async function tools(at, more = {}) {
  const result = await generateText(asked(at, { ...TOOLS, ...more }))
  return { text: result.text, steps: result.steps.map(seen) }
}

async function structured(at) {
  const output = Output.object({ name: 'Person', schema: jsonSchema(SCHEMA) })
  return (await generateText(asked(at, { prompt: ASKED.wanted, output }))).output
}

const withPart = (at, part) =>
  ask(at, { prompt: undefined, messages: [{ role: 'user', content: [{ type: 'text', text: QUESTION }, part] }] })

const refused = call => async at => {
  try {
    return await call(at)
  } catch (error) {
    return told(error)
  }
}

async function previous(at) {
  const first = await ask(at)
  return [first, await ask(at, { prompt: 'And on Sunday?', ...options({ previousResponseId: first.id }) })]
}

drive(
  ['ai', '@ai-sdk/openai'],
  {
    plain: ask,
    stream,
    instructions: at => ask(at, options({ instructions: ASKED.instructions })),
    developer: at => ask(at, TO_DEVELOPER),
    tool: tools,
    'two tools': tools,
    'streamed tools': at => stream(at, TOOLS),
    structured,
    vision: at => withPart(at, { type: 'image', image: PICTURE }),
    file: at => withPart(at, { type: 'file', data: DOCUMENT, mediaType: 'application/pdf', filename: 'hours.pdf' }),
    reasoning: at => tools(at, SEALED),
    'streamed reasoning': at => stream(at, SEALED),
    refusal: stream,
    'web search': at => ask(at, { tools: { web_search: openai(at).tools.webSearch({}) } }),
    previous,
    truncation: at => ask(at, options({ truncation: 'auto' })),
    incomplete: at => stream(at, { maxOutputTokens: 16 }),
    failed: stream,
    'error event': stream,
    'too long': refused(ask),
    unauthorized: refused(ask),
    busy: ask,
    down: ask,
    cut: stream,
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(prompt => ask(at, { prompt }))),
    packed: ask,
    'packed stream': at => stream(at),
    'more headers': at => ask(at, { headers: MORE_HEADERS }),
    cookies: async at => [await ask(at), await ask(at)],
    large: at => withPart(at, { type: 'image', image: LARGE_PICTURE }),
  },
  {
    background: 'does not wait for such answers',
    kept: 'does not get, list or delete answers',
    missing: 'does not get answers',
    'more fields': 'sends no fields that it does not know',
    'more query': 'has no setting for it',
    count: 'does not count tokens',
  },
)

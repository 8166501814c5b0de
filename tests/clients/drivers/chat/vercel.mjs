// The AI SDK of Vercel, with its provider for servers that speak as OpenAI does.

import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool } from 'ai'
import { ASKED, MODEL, PICTURE, QUESTION, QUESTIONS, SCHEMA, TOOL, drive, told, weather } from '../driving.mjs'

const provider = ({ baseURL, key }, more = {}) =>
  createOpenAICompatible({ name: 'there', baseURL, apiKey: key, includeUsage: true, supportsStructuredOutputs: true, ...more })

const asked = (at, more = {}, settings = {}) => ({ model: provider(at, settings)(MODEL), prompt: QUESTION, ...more })

// What a program sees of a result; ids that the SDK makes by chance aside.
const seen = ({ text, usage, finishReason, toolCalls, toolResults, response }) =>
  ({ text, usage, finishReason, toolCalls, toolResults, id: response?.id, model: response?.modelId })

const ask = async (at, more, settings) => seen(await generateText(asked(at, more, settings)))

// The parts as they came; leaves at a word where one is given.
async function stream(at, more = {}, leaveAt = undefined) {
  const parts = []
  let ending = {}
  const leaving = new AbortController()
  const result = streamText({ ...asked(at, more), abortSignal: leaving.signal, onError: () => {} })
  try {
    for await (const part of result.fullStream) {
      if (part.type === 'error') ending = told(part.error)
      else parts.push({ type: part.type, text: part.text, toolName: part.toolName, input: part.input, output: part.output, usage: part.totalUsage })
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

async function tools(at) {
  const result = await generateText(asked(at, TOOLS))
  return { text: result.text, steps: result.steps.map(seen) }
}

async function structured(at) {
  const output = Output.object({ name: 'Person', schema: jsonSchema(SCHEMA) })
  return (await generateText(asked(at, { prompt: ASKED.wanted, output }))).output
}

async function refused(at) {
  try {
    return await ask(at)
  } catch (error) {
    return told(error)
  }
}

async function embeddings(at) {
  const model = provider(at).embeddingModel(ASKED.embedding_model)
  const { embeddings, usage } = await embedMany({ model, values: [QUESTION, 'Hi.'] })
  return { embeddings, usage }
}

const options = values => ({ providerOptions: { there: values } })

drive(
  ['ai', '@ai-sdk/openai-compatible'],
  {
    plain: ask,
    stream,
    'stream usage': stream,
    tool: tools,
    'two tools': tools,
    'streamed tools': at => stream(at, TOOLS),
    structured,
    vision: at => ask(at, { prompt: undefined, messages: [{ role: 'user', content: [{ type: 'text', text: QUESTION }, { type: 'image', image: PICTURE }] }] }),
    'too long': refused,
    busy: ask,
    cut: stream,
    leave: at => stream(at, {}, 'opens'),
    parallel: at => Promise.all(QUESTIONS.map(prompt => ask(at, { prompt }))),
    packed: ask,
    'packed stream': at => stream(at),
    'more fields': at => ask(at, options({ top_k: 5, min_p: null, provider: { order: ['a', 'b'] } })),
    'more query': at => ask(at, {}, { queryParams: { 'api-version': '2026-01-01' } }),
    cookies: async at => [await ask(at), await ask(at)],
    embeddings,
  },
  {
    'two answers': 'asks for one answer only',
    logprobs: 'does not give them to programs',
    developer: 'writes instructions as the system role',
    models: 'does not list models',
  },
)

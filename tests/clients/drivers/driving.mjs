// What the drivers for Node share: see driving.py.

import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'

export const ASKED = JSON.parse(readFileSync(new URL('asked.json', import.meta.url)))
export const { model: MODEL, question: QUESTION, questions: QUESTIONS, tool: TOOL, schema: SCHEMA } = ASKED
export const { reasoning_model: REASONING_MODEL, claude: CLAUDE } = ASKED
export const PICTURE = 'data:image/png;base64,' + ASKED.picture
export const DOCUMENT = 'data:application/pdf;base64,' + ASKED.document
// Readers of pictures stop at its end, so that zeros behind it only make it large.
export const LARGE = Buffer.concat([Buffer.from(ASKED.picture, 'base64'), Buffer.alloc(ASKED.padding_bytes)]).toString('base64')
export const LARGE_PICTURE = 'data:image/png;base64,' + LARGE
export const MORE_HEADERS = { 'OpenAI-Beta': 'answers=v2', 'X-Trace': 'a,b' }
export const MORE_FIELDS = { top_k: 5, min_p: null, provider: { order: ['a', 'b'] } }
export const MORE_QUERY = { 'api-version': '2026-01-01' }

// For clients that write `/v1` themselves.
export const rootOf = ({ baseURL }) => baseURL.replace(/\/v1$/, '')

export const weather = ({ city }) => ASKED.weather[city]

// What a program learns of an error: its class, its parts, and the errors behind it.
export function told(error) {
  const behind = []
  for (let cause = error.cause; cause; cause = cause.cause) behind.push(`${cause.name}: ${cause.message}`)
  const { status, statusCode, code, param, type, responseBody, isRetryable } = error
  return { error: error.name ?? 'Error', message: error.message, parts: { status, statusCode, code, param, type, responseBody, isRetryable }, behind }
}

// Answers the runner until it hangs up. `packages`: whose versions are told, the client's own first.
export async function drive(packages, scenarios, cannot) {
  const say = value => process.stdout.write(JSON.stringify(value) + '\n')
  console.log = console.warn = console.info = console.error // what a library prints is no answer
  const versions = { node: process.versions.node }
  for (const name of packages) versions[name] = versionOf(name)
  say({ versions, scenarios: Object.keys(scenarios), cannot })
  for await (const line of createInterface({ input: process.stdin })) {
    const { scenario, base_url: baseURL, key } = JSON.parse(line)
    try {
      say({ result: (await scenarios[scenario]({ baseURL, key })) ?? null })
    } catch (error) {
      say({ broken: error.stack ?? String(error) })
    }
  }
}

function versionOf(name) {
  const place = createRequire(import.meta.url).resolve.paths(name).find(folder => {
    try { return readFileSync(`${folder}/${name}/package.json`) } catch { return false }
  })
  return JSON.parse(readFileSync(`${place}/${name}/package.json`)).version
}

// A certified OpenID provider for tests: node provider.mjs PORT KEYS.json. Gives JWT access tokens to one client.
import { readFileSync } from 'node:fs';
import Provider from 'oidc-provider';

const [port, keys] = process.argv.slice(2);
const resource = {
  scope: 'argosy',
  audience: 'argosy',
  accessTokenFormat: 'jwt',
  accessTokenTTL: 300,
  jwt: { sign: { alg: 'RS256' } },
};
const provider = new Provider(`http://127.0.0.1:${port}`, {
  jwks: JSON.parse(readFileSync(keys, 'utf8')),
  clients: [{
    client_id: 'robot',
    client_secret: 'robot-secret',
    grant_types: ['client_credentials'],
    redirect_uris: [],
    response_types: [],
    token_endpoint_auth_method: 'client_secret_post',
  }],
  scopes: ['argosy'],
  extraTokenClaims: () => ({ tenant: 'acme' }),
  features: {
    clientCredentials: { enabled: true },
    devInteractions: { enabled: false },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => 'urn:argosy',
      getResourceServerInfo: () => resource,
    },
  },
});
provider.listen(Number(port), '127.0.0.1', () => console.log('ready'));

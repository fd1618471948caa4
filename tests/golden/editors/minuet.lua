-- minuet-ai.nvim at $MINUET, with the provider in $PROVIDER. By default it takes what has come in 3 seconds: a busy test
-- machine has longer, and fewer tokens to write.
local provider = vim.env.PROVIDER
local routes = { openai_fim_compatible = "/beta/completions", codestral = "/v1/fim/completions" }
vim.opt.runtimepath:append(vim.env.MINUET)
require("minuet").setup {
  provider = provider,
  request_timeout = 60,
  provider_options = {
    [provider] = {
      end_point = vim.env.ENDPOINT .. routes[provider],
      model = "glm-demo",
      api_key = function() return "none" end,
      optional = { max_tokens = 8, temperature = 0 },
    },
  },
}
local ghost = require("minuet.virtualtext").action

return { ask = ghost.next, is_shown = ghost.is_visible, accept = ghost.accept }

-- cmp-ai at $CMP_AI, with its provider Codestral. It is a source of nvim-cmp, at $NVIM_CMP, and needs plenary.nvim, at
-- $PLENARY.
for _, name in ipairs { "NVIM_CMP", "PLENARY", "CMP_AI" } do
  vim.opt.runtimepath:append(vim.env[name])
end
vim.env.CODESTRAL_API_KEY = "none"
local cmp = require("cmp")
cmp.setup { sources = { { name = "cmp_ai" } }, completion = { autocomplete = false } }
vim.cmd.runtime("after/plugin/init.lua")
require("cmp_ai.config"):setup {
  max_lines = 1000,
  provider = "Codestral",
  provider_options = {
    model = "glm-demo",
    max_tokens = 8,
    temperature = 0,
    suffix = function(after) return after end,
  },
}
BASE_URL = vim.env.ENDPOINT .. "/v1/fim/completions" -- the provider's address is a global variable

return {
  ask = cmp.complete,
  is_shown = cmp.visible,
  accept = function() cmp.confirm { select = true } end,
}

-- Has a plugin of Neovim suggest text in the middle of a file of 10 kB. Prints the screen, an empty line, and what the
-- line became when the suggestion was taken. $PLUGIN names the file beside this one that sets the plugin up for the
-- server at $ENDPOINT. Without a suggestion in a minute it prints the screen and the editor's messages, and the exit
-- code is 1.
vim.o.columns, vim.o.lines, vim.o.scrolloff, vim.o.swapfile = 100, 14, 5, false

local function screen()
  vim.cmd.redraw()
  local rows = {}
  for row = 1, vim.o.lines do
    local cells = {}
    for column = 1, vim.o.columns do
      cells[column] = vim.fn.screenstring(row, column)
    end
    rows[row] = table.concat(cells):gsub(" +$", "")
  end
  return table.concat(rows, "\n")
end

local function finish(text, command)
  io.stdout:write(text, "\n")
  vim.cmd(command)
end

-- Also ends an editor in which a script has failed.
vim.defer_fn(function()
  finish(screen() .. "\n\n" .. vim.fn.execute("messages"), "cquit!")
end, 60000)

local here = vim.fn.fnamemodify(debug.getinfo(1, "S").source:sub(2), ":p:h")
local plugin = dofile(("%s/%s.lua"):format(here, vim.env.PLUGIN))

local subjects = { "The old bridge", "A narrow street", "The harbour", "Her house", "The market" }
local verbs = { "leads to", "was built before", "can be seen from", "lies behind" }
local objects = { "the church of the fishermen", "the castle on the hill", "the gate in the wall" }
local lines, middle = {}, 105
for number = 1, 2 * middle do
  local subject, verb = subjects[number % #subjects + 1], verbs[number % #verbs + 1]
  lines[number] = ("%s %s %s."):format(subject, verb, objects[number % #objects + 1])
end
lines[middle] = "The capital of  is a great city, and the river runs through it."
assert(#table.concat(lines, "\n") > 10000)
vim.cmd.edit("town.md")
vim.api.nvim_buf_set_lines(0, 0, -1, false, lines)
vim.api.nvim_win_set_cursor(0, { middle, #"The capital of " })

local function take()
  local shown = screen()
  plugin.accept()
  vim.defer_fn(function()
    local taken = vim.api.nvim_buf_get_lines(0, middle - 1, vim.api.nvim_win_get_cursor(0)[1], false)
    finish(shown .. "\n\n" .. table.concat(taken, "\n"), "quitall!")
  end, 200)
end

local polls = 0
local function poll()
  if plugin.is_shown() then
    return vim.defer_fn(take, 300) -- a menu is drawn later
  elseif polls % 200 == 0 then
    plugin.ask() -- again where the model had nothing to say
  end
  polls = polls + 1
  vim.defer_fn(poll, 100)
end

vim.defer_fn(function()
  vim.cmd.startinsert()
  vim.defer_fn(poll, 200)
end, 200)

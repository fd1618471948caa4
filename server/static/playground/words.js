// The interface in English and Chinese.

const CHINESE = {
  skip: "跳到正文", fill: "填空", score: "评分", theme: "深色", light: "浅色", key: "密钥", api: "接口", blanks: "空格",
  hint: "写下文字，在缺词处放入空格。", text: "文字", run: "填空", stop: "停止", undo: "撤销", sure: "确定", unsure: "不确定",
  legend: "——指向一个词可看其他可能，点击即可替换", form: "评分对象", candidates: "空格的候选", conditional: "上文的续写",
  whole: "整段文字", lines: "每行一个候选（多个空格：各部分用 | 分开）", contextlines: "每行一个续写", rank: "评分",
  end: "计入结束符", orders: "比较顺序", normalize: "按", sum: "总和", token: "词元", char: "字符", settings: "设置",
  order: "顺序", ltr: "从左到右", rtl: "从右到左", random: "随机", confident: "最确定者先", own: "自定：2, 1, …",
  ownorder: "空格的顺序", strategy: "方式", usual: "模型默认", temperature: "温度", max: "每空词元数", n: "答案数", seed: "随机种子",
  adapter: "适配器", none: "无", beams: "束宽", choices: "每个空格的选项，用逗号分开", regex: "每个空格的模式（正则）",
  code: "作为命令", copy: "复制", copied: "已复制", share: "复制链接", history: "历史", kept: "保存在此浏览器；密钥从不保存。",
  forget: "全部清除", keyboard: "键盘", "k-mask": "在光标处放入空格", "k-run": "填空、评分或建议", "k-stop": "停止；关闭打开的",
  "k-alt": "到一个词、其他可能、选用", "k-undo": "撤销替换", "k-tab": "填空、评分、代码、接入", "k-take": "在代码中：采用建议", keytitle: "此服务器的密钥",
  keynote: "只留在内存里直到页面关闭，只发给此服务器。", use: "使用", cancel: "取消", working: "正在填…", done: "完成",
  stopped: "已停止", answer: "答案", candidate: "候选", probability: "概率", tokens: "词元", alternatives: "其他可能",
  unreachable: "无法连接服务器。", retry: "重试", needskey: "此服务器需要密钥。", busy: "服务器忙，", again: "秒后再试。",
  later: "请稍后再试。", noblank: "文中没有空格：将在末尾续写。", emptytext: "请先写些文字。",
  uneven: "每个候选须为每个空格各给一部分。", open: "用 Alt M 放入空格，", total: "对数概率", perplexity: "困惑度",
  writing: "代码", connect: "接入", examples: "试一试", words: "两个缺词", rest: "续写", ranked: "比较候选与顺序", first: "先写 1",
  codehint: "写下文字：光标后会出现建议。Tab 采用，Esc 取消。", suggest: "建议", accept: "采用", suggestion: "建议",
  take: "Tab 采用，Esc 取消", nothing: "没有建议", trimmed: "（文字太长：只读了光标附近的部分）",
  connecthint: "其他程序使用此服务器所需的设置。只显示此服务器和模型能用的。", keynote2: "请把密钥写在此处：",
  libraries: "程序库", editors: "编辑器", evaluation: "评测",
};
const ENGLISH = {
  light: "Light", contextlines: "one continuation a line", copied: "Copied", working: "writing …", done: "done", stopped: "stopped",
  answer: "answer", candidate: "candidate", probability: "probability", tokens: "tokens", alternatives: "alternatives",
  unreachable: "The server cannot be reached.", retry: "Try again", needskey: "This server asks for a key.",
  busy: "The server is busy;", again: "s until it is worth trying again.", later: "Try again a little later.",
  noblank: "no blank: the text is gone on with at its end", emptytext: "Write a text first.",
  uneven: "Each candidate needs a part for every blank.", total: "log-probability", perplexity: "perplexity",
  words: "two blanks", rest: "the rest of a sentence", ranked: "candidates, in every order", first: "1 is written first", suggestion: "suggestion",
  take: "Tab takes it, Esc takes it away", nothing: "nothing to suggest",
  trimmed: "(the text is too long: the part around the cursor was read)",
  libraries: "Libraries", editors: "Editors", evaluation: "Evaluation",
};

const first = new Map(); // what stands in the page is the English
let chinese = false;

export const isChinese = () => chinese;
export const t = (name) => (chinese ? CHINESE[name] : ENGLISH[name] ?? first.get(name)) ?? name;

/** Puts the interface into a language. */
export function speak(language) {
  chinese = language === "zh";
  document.documentElement.lang = chinese ? "zh" : "en";
  for (const element of document.querySelectorAll("[data-t]")) {
    if (!first.has(element.dataset.t)) first.set(element.dataset.t, element.textContent);
    element.textContent = t(element.dataset.t);
  }
  for (const element of document.querySelectorAll("[data-t-label]")) {
    const name = element.dataset.tLabel;
    if (!first.has(`label ${name}`)) first.set(`label ${name}`, element.getAttribute("aria-label"));
    element.setAttribute("aria-label", chinese ? t(name) : first.get(`label ${name}`));
  }
}

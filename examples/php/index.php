<?php
// A page with a form, a session and an upload.
//
//     python -m gateway --php examples/php
//
// php-cgi keeps sessions where php.ini says (session.save_path), which on Debian is made for it. --env SESSIONS=DIR
// names another directory.
declare(strict_types=1);

if ($directory = getenv('SESSIONS')) {
    session_save_path($directory);
}
session_start(['cookie_httponly' => true, 'cookie_samesite' => 'Lax', 'use_strict_mode' => true]);
$_SESSION['token'] ??= bin2hex(random_bytes(16));
$_SESSION['visits'] = ($_SESSION['visits'] ?? 0) + 1;

// Everything that comes from outside is escaped before it stands in HTML.
function shown(string $text): string
{
    return htmlspecialchars($text, ENT_QUOTES | ENT_SUBSTITUTE, 'UTF-8');
}

$lines = [];
if ($_SERVER['REQUEST_METHOD'] === 'POST') {
    // Only the page that this session was shown knows the token.
    if (!hash_equals($_SESSION['token'], (string) ($_POST['token'] ?? ''))) {
        http_response_code(403);
        $lines[] = 'This form was not from here; send it again.';
    } else {
        $_SESSION['name'] = substr(trim((string) ($_POST['name'] ?? '')), 0, 80);
        $file = $_FILES['file'] ?? null;
        if ($file && $file['error'] === UPLOAD_ERR_OK) {
            // Nothing is kept: PHP removes the file when the request ends.
            $lines[] = sprintf('%s has %d bytes, SHA-256 %s.', $file['name'], $file['size'],
                hash_file('sha256', $file['tmp_name']));
        } elseif ($file && $file['error'] !== UPLOAD_ERR_NO_FILE) {
            $lines[] = "The file did not come through: error {$file['error']}; see upload_max_filesize in php.ini.";
        }
    }
}
$name = ($_SESSION['name'] ?? '') ?: 'stranger';
header('Content-Type: text/html; charset=utf-8');
?>
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Hello from PHP</title>
<link rel="stylesheet" href="style.css">
<h1>Hello, <?= shown($name) ?>!</h1>
<p>This is visit number <?= $_SESSION['visits'] ?>.
<?php foreach ($lines as $line): ?>
<p><?= shown($line) . "\n" ?>
<?php endforeach ?>
<form method="post" enctype="multipart/form-data">
  <input type="hidden" name="token" value="<?= shown($_SESSION['token']) ?>">
  <p><label>Your name: <input name="name" maxlength="80"></label>
  <p><label>A file: <input name="file" type="file"></label>
  <p><button>Send</button>
</form>
</html>

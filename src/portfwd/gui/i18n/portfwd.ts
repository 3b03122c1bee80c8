<?xml version="1.0" encoding="utf-8"?>
<!DOCTYPE TS>
<TS version="2.1">
<context>
    <name>Actions</name>
    <message>
        <source>C&amp;hange...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Pa&amp;use</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Re&amp;move</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Undo remo&amp;val</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Message</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}: removed, but {1}.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}: no longer reachable; the connections were ended.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>The forward is back.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Paused, but {0}.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>The connection was ended.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Res&amp;ume</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>CheckDialog</name>
    <message>
        <source>The way to {0}</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Dashboard</name>
    <message>
        <source>Port forwarding</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Search: qube, port, state, net qube...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Search</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Openings and endings</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Asking dom0...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Open a port</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;List</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Network</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>This may be out of date. {0}</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Details</name>
    <message>
        <source>The forward</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Open connections</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Connections:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;End the connection</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Chec&amp;k the way in...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Select a forward to see who is connected.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Connections are not known: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Connections: {0} or more</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Connections: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0} ({1}, port {2})</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Findings</name>
    <message>
        <source>What the check found</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>A marked probe goes through the chain...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>The check could not be made: {0}</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>ForwardsModel</name>
    <message>
        <source>Qube</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Reachable at</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Port</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Protocol</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Who may connect</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Ends in</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>State</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Traffic</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Connected</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Comment</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>ForwardsTable</name>
    <message>
        <source>Forwards</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>NetworkView</name>
    <message>
        <source>Network</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0} forwards through {1} qubes</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>, not running</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>OutboundDialog</name>
    <message>
        <source>New rule</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Change a rule</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Accept</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Drop</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>this address, network or host name</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>anywhere</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>the name servers (DNS)</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>192.168.1.20, 192.168.1.0/24 or example.com</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>any</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>all ports; or 443, 80-90, https</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>all types</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>2026-12-01 15:30, or 15:30</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>What the rule does</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>never</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>in 15 minutes</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>in 2 hours</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>at a date</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}, as it is</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Action:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;To:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>A&amp;ddress:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Protocol:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>P&amp;orts:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;ICMP type:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Ends:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Until:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Comment:</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>OutboundView</name>
    <message>
        <source>What the qube may send</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;New rule...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Edit...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Delete</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>U&amp;p</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Do&amp;wn</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Allow everything</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Deny everything</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>What the qube may send (firewall rules, the first that fits decides)</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Firewall rules</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Replace all {0} rules by one?</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>OutcomeView</name>
    <message>
        <source>Storing the forward...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Outcome</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Hops that have answered</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Co&amp;py the address</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Show &amp;QR code</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Chec&amp;k what is in the way</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>QR code of the address</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Taking it back...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>It is not known whether the forward is stored: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}: done</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}: {1}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Opening...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>it was removed by someone else meanwhile</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Stored, but it is not known whether it is open: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Stored, but {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Copied {0}</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Panel</name>
    <message>
        <source>&amp;Open a port...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Asking dom0...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Traffic</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Ports of {0} that others can reach (port forwarding)</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>This may be out of date. {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Not told: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Nobody can reach {0} from outside.</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>QubeWindow</name>
    <message>
        <source>Firewall of {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Firewall rules</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Asking dom0...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>The firewall rules cannot be read: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Nothing was saved: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>It is not known whether the rules were saved: {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Somebody else has changed the firewall rules of {0} meanwhile.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Keep yours, or look at the other ones first? Yours are not saved yet.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Save &amp;mine</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Show the &amp;other ones</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>RuleDialog</name>
    <message>
        <source>Open a port of {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Change a forward of {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Cancel</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Open the port</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Apply</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Cancel and &amp;undo</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Undo</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Close</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>RuleForm</name>
    <message>
        <source>8443, 5000-5010 or ssh</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>TCP and UDP</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Protocol</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Reachable from</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>192.168.1.20, 192.168.1.0/24 or a host name</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Address, network or host name of the clients</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>the same</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Open</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>2026-12-01 15:30, or 15:30</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Date and time of the end</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>What will be opened</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>its net qube</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>the LAN (neighbours of the network cards)</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>this address, network or host name</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>anyone who reaches this computer</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>other qubes behind {0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0} behind {1}, as it is</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>until I remove it</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>for 15 minutes</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>for 2 hours</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>until {0} shuts down</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>until the computer restarts</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>until a date</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>until {0}, as it is</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Port of the qube:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Reachable from:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;External port:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Open:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Comment:</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Use &amp;{0}</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Nothing will be opened yet.</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>RulesModel</name>
    <message>
        <source>Action</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>To</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Protocol</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Ports</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Ends</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Comment</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>type {0}</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Sparkline</name>
    <message>
        <source>Traffic lately</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0}/s now, {1}/s at most</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Tray</name>
    <message>
        <source>Asking dom0...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Show all forwards</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Close all ports...</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>&amp;Quit</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Shut the ports of all {0} forwards now, and end their connections?</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>Close all ports</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>The forwards are paused, not removed: you can resume each of them.</source>
        <translation type="unfinished" />
    </message>
    <message>
        <source>{0} (may be out of date)</source>
        <translation type="unfinished" />
    </message>
</context><context>
    <name>Watch</name>
    <message>
        <source>No news from dom0: {0}</source>
        <translation type="unfinished" />
    </message>
</context></TS>
